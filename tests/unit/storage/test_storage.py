"""Storage on file:// and memory://; atomicity on a real disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from echoray.config import S3Access, load_run
from echoray.errors import ConfigError, StorageError
from echoray.storage import Store, open_store, store_of
from tests.small_disk import small_disk
from tests.unit.storage.store_contract import StoreContract


class TestFile(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "a store"))


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://{uuid.uuid4().hex}/prefix")


def test_a_writer_that_is_killed_leaves_nothing_that_a_reader_sees(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write_bytes("kept", b"old")
    code = (
        "from echoray.storage import open_store;"
        f"store = open_store({str(tmp_path)!r});"
        "[store.write_bytes(name, bytes(300 << 20)) for name in ('kept', 'new')]"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".partial-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert list(tmp_path.glob(".partial-*")), "the writer finished before it was killed"
    assert store.list() == ["kept"]
    assert store.read_bytes("kept") == b"old"
    assert not store.exists("new")


def test_a_failed_write_cleans_up_and_keeps_the_old_content(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write_bytes("kept", b"old")
    with pytest.raises(StorageError, match="not found"):
        store.upload(tmp_path / "no such file", "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert store.read_bytes("kept") == b"old"


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m"):
        with pytest.raises(StorageError, match="no space left") as error:
            open_store(str(tmp_path)).write_bytes("big", bytes(4 << 20))
        assert "free space" in error.value.hint
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        open_store(str(tmp_path)).write_bytes("x", b"")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("memory://x", "memory:///x"),
        ("/a/../b", "file:///b"),
        ("file:///a//b/", "file:///a/b"),
        ("relative", f"file://{Path.cwd()}/relative"),
        ("file://./relative", f"file://{Path.cwd()}/relative"),
        ("~/x", f"file://{Path.home()}/x"),
    ],
)
def test_a_uri_opens_as_its_normal_form(uri: str, expected: str) -> None:
    assert open_store(uri).root == expected
    assert open_store(open_store(uri).root) == open_store(uri)


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://", "memory:///", "gs://bucket"])
def test_a_uri_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="is not supported"):
        open_store(uri)


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        open_store(str(tmp_path / "file"))


def test_the_store_of_a_run_has_the_runs_endpoint() -> None:
    settings = {
        "workspace": "s3://bucket/x",
        "storage": {"endpoint_url": "http://minio:9000", "region": "eu"},
    }
    access = S3Access(endpoint_url="http://minio:9000", region="eu")
    assert store_of(load_run("tiny").merged(settings)) == Store("s3://bucket/x", access)


class ConditionalPuts:
    """An S3 filesystem whose server answers each put with an error code (and a message), or takes it."""

    protocol = ("s3", "s3a")

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)

    def call_s3(self, *_: object, **__: object) -> None:
        answer = self.answers.pop(0)
        if answer:
            error = {"Code": answer, "Message": "request 7F409A-412-PreconditionFailed"}
            raise translate_boto_error(ClientError({"Error": error}, "PutObject"))  # type: ignore[no-untyped-call]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    def conditional(*answers: str | None) -> bool:
        server = ConditionalPuts(*answers)
        monkeypatch.setattr(Store, "filesystem", lambda _: server)
        monkeypatch.setattr("time.sleep", lambda _: None)
        written = open_store("s3://bucket/x").write_bytes("one", b"1", if_absent=True)
        assert not server.answers
        return written

    return conditional


@pytest.mark.parametrize(
    ("answers", "written"),
    [
        ([None], True),
        (["PreconditionFailed"], False),
        (["412"], False),
        (["ConditionalRequestConflict", "409", None], True),
        (["ConditionalRequestConflict", "PreconditionFailed"], False),
    ],
)
def test_the_servers_error_code_says_whether_another_writer_was_first(
    put: Callable[..., bool], answers: list[str | None], written: bool
) -> None:
    assert put(*answers) is written


@pytest.mark.parametrize("code", ["AccessDenied", "SlowDown", "NotImplemented", "InternalError", "Other"])
def test_another_error_of_a_conditional_write_is_never_taken_for_another_writer(
    put: Callable[..., bool], code: str
) -> None:
    with pytest.raises(StorageError, match="permission denied" if code == "AccessDenied" else "7F409A"):
        put(code)


def test_a_conflict_that_does_not_end_is_an_error(put: Callable[..., bool]) -> None:
    with pytest.raises(StorageError, match="bucket/x/one"):
        put(*["ConditionalRequestConflict"] * 6)


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ({"profile": "a", "credentials_ref": "env:B"}, "expected one of them"),
        ({"ca_bundle": "ca.pem", "verify": False}, "expected verify: true"),
        ({"endpoint_url": "https://user:word@host"}, "endpoint_url"),
        ({"credentials_ref": "AKIA:word"}, "credentials_ref"),
        ({"buckets": {"b": {"regoin": "eu"}}}, "regoin"),
    ],
)
def test_contradictions_and_secrets_in_the_open_are_refused(storage: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        load_run("tiny").merged({"storage": storage})
