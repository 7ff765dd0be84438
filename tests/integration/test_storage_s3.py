"""Storage and artifacts on a real S3 server (moto over HTTP)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from echoray import artifacts
from echoray.config import S3Access
from echoray.errors import ArtifactError, StorageError
from echoray.storage import Store, open_store
from tests.integration.conftest import S3Server
from tests.unit.storage.store_contract import NUM_RACERS, StoreContract

pytestmark = pytest.mark.integration


@pytest.fixture
def store(s3_server: S3Server) -> Store:
    uri = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
    return open_store(uri, s3_server.access)


class TestS3(StoreContract):
    """The contract over HTTP."""


def start(code: str, store: Store) -> subprocess.Popen[str]:
    opened = (
        "from pathlib import Path; from echoray import artifacts; from echoray.config import S3Access;"
        "from echoray.storage import Store;"
        f"store = Store({store.root!r}, S3Access.model_validate_json({store.access.model_dump_json()!r}));"
    )
    return subprocess.Popen([sys.executable, "-c", opened + code], stdout=subprocess.PIPE, text=True)


def test_an_upload_that_is_killed_between_its_parts_is_never_visible(store: Store, tmp_path: Path) -> None:
    import boto3

    with (tmp_path / "large").open("wb") as handle:
        handle.truncate(400 << 20)
    process = start(f"store.upload(Path({str(tmp_path / 'large')!r}), 'large')", store)
    client = boto3.client("s3", endpoint_url=store.access.endpoint_url)
    bucket = store.key().partition("/")[0]
    deadline = time.monotonic() + 60
    while not client.list_multipart_uploads(Bucket=bucket).get("Uploads"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not store.exists("large")
    assert store.list() == []


def test_one_of_sixteen_racing_processes_wins(store: Store) -> None:
    go = time.time() + 12
    code = "import time; fs = store.filesystem(); time.sleep(max(0, {go} - time.time()));"
    code += "print(store.write_bytes('prize', b'{number}' * 9, if_absent=True))"
    racers = [start(code.format(go=go, number=number), store) for number in range(NUM_RACERS)]
    won = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(won) == ["False"] * (NUM_RACERS - 1) + ["True"]
    assert store.read_bytes("prize") == str(won.index("True")).encode() * 9


def test_an_artifact_is_fetched_once_and_verified(store: Store, tmp_path: Path) -> None:
    ref = artifacts.plan("model", "m", config={})

    def build(folder: Path) -> dict[str, int]:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"w" * 100)
        return {"files": 1}

    artifacts.produce(store, ref, build, config={})
    artifacts.verify(store, ref)
    folder = artifacts.fetch(store, ref, tmp_path)
    assert (folder / "sub" / "weights").read_bytes() == b"w" * 100
    before = (folder / "sub" / "weights").stat().st_mtime_ns
    artifacts.fetch(store, ref, tmp_path)
    assert (folder / "sub" / "weights").stat().st_mtime_ns == before
    store.write_bytes(f"{ref.path}/sub/weights", b"x" * 100)
    with pytest.raises(ArtifactError, match="differs from the manifest"):
        artifacts.verify(store, ref)
    with pytest.raises(ArtifactError, match="differs from the manifest"):
        artifacts.fetch(store, ref, tmp_path / "elsewhere")
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]


def test_two_processes_that_make_the_same_artifact_end_with_one_that_verifies(store: Store) -> None:
    code = (
        "import time; time.sleep(max(0, {go} - time.time()));"
        "build = lambda to: [(to / f'part-{{i}}').write_text('x' * 1000) for i in range(20)] and {{}};"
        "ref = artifacts.plan('shards', 's', config={{}});"
        "artifacts.produce(store, ref, build, config={{}})"
    )
    makers = [start(code.format(go=time.time() + 5), store) for _ in range(2)]
    assert [maker.wait(timeout=120) for maker in makers] == [0, 0]
    ref = artifacts.plan("shards", "s", config={})
    assert len(artifacts.require(store, ref, made_by="a test").files) == 20
    artifacts.verify(store, ref)


@pytest.mark.parametrize("act", ["exists", "list", "read_bytes", "delete"])
def test_a_server_that_does_not_answer_is_an_error_and_not_an_empty_store(act: str) -> None:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    store = open_store("s3://bucket/prefix", S3Access(endpoint_url="http://127.0.0.1:9", region="us-east-1"))
    with pytest.raises(StorageError, match=r"s3://bucket/prefix/x"):
        getattr(store, act)("x")


def test_a_bucket_that_does_not_exist_is_named(s3_server: S3Server) -> None:
    store = open_store("s3://no-such-bucket/p", s3_server.access)
    with pytest.raises(StorageError, match="no-such-bucket"):
        store.write_bytes("x", b"")
    with pytest.raises(StorageError, match="no-such-bucket"):
        store.write_bytes("x", b"", if_absent=True)
