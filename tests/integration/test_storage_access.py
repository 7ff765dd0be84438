"""S3 servers that check who asks, and that are reached over TLS."""

from __future__ import annotations

import datetime
import ipaddress
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from echoray.config import S3Access, load_run
from echoray.errors import ConfigError, StorageError
from echoray.storage import Store, open_store, store_at
from tests.integration.conftest import moto_server

pytestmark = pytest.mark.integration
BUCKET = "guarded"
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@dataclass(frozen=True)
class Guarded:
    """A server that signs and checks, and the keys of the one identity that may use it."""

    endpoint_url: str
    key: str
    secret: str

    def access(self, **more: Any) -> S3Access:
        return S3Access(endpoint_url=self.endpoint_url, region="us-east-1", max_attempts=1, **more)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    import boto3

    setting_up = 4  # requests that are answered before signatures and permissions are checked
    with moto_server(INITIAL_NO_AUTH_ACTION_COUNT=str(setting_up)) as port:
        reached: dict[str, Any] = {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region_name": "us-east-1",
            "aws_access_key_id": "nobody",
            "aws_secret_access_key": "nothing",
        }
        users = boto3.client("iam", **reached)
        users.create_user(UserName="writer")
        policy = (
            '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}'
        )
        users.put_user_policy(UserName="writer", PolicyName="all", PolicyDocument=policy)
        boto3.client("s3", **reached).create_bucket(Bucket=BUCKET)
        made = users.create_access_key(UserName="writer")["AccessKey"]
        yield Guarded(reached["endpoint_url"], made["AccessKeyId"], made["SecretAccessKey"])


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials but those that a test gives."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def at(access: S3Access, name: str) -> Store:
    return open_store(f"s3://{BUCKET}/{name}", access)


def test_credentials_are_read_from_a_file_each_time_and_travel_with_no_store(
    guarded: Guarded, tmp_path: Path
) -> None:
    file = tmp_path / "s3-key"
    store = at(guarded.access(credentials_ref=f"file:{file}"), "file")
    file.write_text(f"{guarded.key}:wrong\n")
    with pytest.raises(StorageError, match=r"s3://guarded/file/x"):
        store.write_bytes("x", b"1")
    file.write_text(f"{guarded.key}:{guarded.secret}\n")
    store.write_bytes("x", b"1")
    travelled = pickle.dumps(store)
    assert guarded.secret.encode() not in travelled
    assert pickle.loads(travelled).at("sub").write_bytes("y", b"2", if_absent=True)
    assert store.list() == ["sub/y", "x"]


def test_a_profile_is_an_identity(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id=nobody\naws_secret_access_key=nothing\n"
        f"[archive]\naws_access_key_id={guarded.key}\naws_secret_access_key={guarded.secret}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with pytest.raises(StorageError):
        at(guarded.access(), "profile").write_bytes("x", b"1")
    at(guarded.access(profile="archive"), "profile").write_bytes("x", b"1")


@pytest.mark.parametrize("given", ["", "only-a-key", "a:b:c:d", "a:"])
def test_what_is_no_pair_of_keys_is_refused_without_being_shown(
    given: str, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_KEY", given)
    with pytest.raises(ConfigError, match="env:S3_KEY") as caught:
        at(guarded.access(credentials_ref="env:S3_KEY"), "x").list()
    assert not given or given not in str(caught.value)


def test_a_bucket_may_be_reached_in_a_way_of_its_own(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_KEY", f"{guarded.key}:{guarded.secret}")
    own = guarded.access(credentials_ref="env:S3_KEY").model_dump(mode="json")
    storage = {"endpoint_url": "http://127.0.0.1:9", "max_attempts": 1, "buckets": {BUCKET: own}}
    run = load_run("tiny").merged({"workspace": "s3://other/workspace", "storage": storage})
    store_at(run, f"s3://{BUCKET}/archive").write_bytes("x", b"1")
    with pytest.raises(StorageError, match="s3://other"):
        store_at(run, run.workspace).list()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_is_checked_against_the_authorities_that_are_named(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_KEY", "test:test")
    cert, key = certificate
    with moto_server("-s", "-c", str(cert), "-k", str(key)) as port:
        common = {"endpoint_url": f"https://127.0.0.1:{port}", "region": "us-east-1", "max_attempts": 1}
        common |= {"credentials_ref": "env:S3_KEY"}
        trusting = at(S3Access(**common, ca_bundle=str(cert)), "tls")
        trusting.filesystem().call_s3("create_bucket", Bucket=BUCKET)
        trusting.write_bytes("x", b"1")
        assert at(S3Access(**common, verify=False), "tls").read_bytes("x") == b"1"
        with pytest.raises(StorageError, match=r"(?i)certificate"):
            at(S3Access(**common), "tls").read_bytes("x")
        with pytest.raises(ConfigError, match="ca_bundle"):
            at(S3Access(**common, ca_bundle=str(tmp_path / "none.pem")), "tls").read_bytes("x")
