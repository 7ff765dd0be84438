"""Artifacts: named by their plan, finished by their manifest, verified by their digests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from echoray import artifacts
from echoray.errors import ArtifactError
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store") if request.param == "file" else f"memory://{uuid.uuid4().hex}")


def writer(**files: str) -> Callable[[Path], Mapping[str, Any]]:
    def build(folder: Path) -> Mapping[str, Any]:
        for name, text in files.items():
            (folder / name).write_text(text)
        return {"files": len(files)}

    return build


def produce(store: Store, **files: str) -> ArtifactRef:
    ref = artifacts.plan("kind", "name", config={"a": 1})
    artifacts.produce(store, ref, writer(**files), config={"a": 1})
    return ref


def test_a_plan_is_the_same_in_every_process_and_whatever_the_order_of_keys() -> None:
    parent = ArtifactRef("studies", "s", "0" * 64)
    ref = artifacts.plan("shards", "tiny", config={"b": [1, 2.5], "a": "肝"}, parents=[parent])
    assert ref == artifacts.plan("shards", "tiny", config={"a": "肝", "b": [1, 2.5]}, parents=[parent])
    # A changed value here means that every finished artifact is made again.
    assert ref.digest == "8cb25237c0236c77a01ca133dfffd921cd010831b93eda4949c708dae83f4ca0"
    assert ref.path == f"shards/tiny-{ref.digest[:8]}"


def test_every_part_of_a_plan_changes_the_digest() -> None:
    parent, other = ArtifactRef("k", "n", "0" * 64), ArtifactRef("k", "n", "1" * 64)
    plans = [
        artifacts.plan("k", "n", config={"a": 1}, parents=[parent]),
        artifacts.plan("K", "n", config={"a": 1}, parents=[parent]),
        artifacts.plan("k", "m", config={"a": 1}, parents=[parent]),
        artifacts.plan("k", "n", config={"a": 2}, parents=[parent]),
        artifacts.plan("k", "n", config={"a": 1}, parents=[other]),
        artifacts.plan("k", "n", config={"a": 1}, parents=[parent, other]),
        artifacts.plan("k", "n", config={"a": 1}),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)


def test_producing_twice_builds_once_and_gives_the_same_manifest(store: Store) -> None:
    ref = artifacts.plan("kind", "name", config={})
    parent = ArtifactRef("studies", "s", "0" * 64)
    built = []

    def build(folder: Path) -> Mapping[str, Any]:
        built.append(folder)
        return writer(x="1")(folder)

    first = artifacts.produce(store, ref, build, config={"n": 1}, parents=[parent])
    assert artifacts.produce(store, ref, build, config={"n": 1}, parents=[parent]) == first
    assert artifacts.find(store, ref) == first
    assert len(built) == 1
    assert (first.counts, first.parents, first.config) == ({"files": 1}, (parent,), {"n": 1})
    assert not built[0].exists()


def test_files_without_a_manifest_are_not_an_artifact_and_are_replaced(store: Store) -> None:
    ref = artifacts.plan("kind", "name", config={"a": 1})
    store.write_bytes(f"{ref.path}/leftover", b"half")
    assert artifacts.find(store, ref) is None
    for act in (artifacts.verify, artifacts.fetch):
        with pytest.raises(ArtifactError, match="not finished"):
            act(store, ref)
    with pytest.raises(ArtifactError) as error:
        artifacts.require(store, ref, made_by="echoray data prepare")
    assert error.value.hint == "run `echoray data prepare` first"
    produce(store, x="1")
    assert store.list() == [f"{ref.path}/manifest.json", f"{ref.path}/x"]


def test_a_failed_build_leaves_no_artifact(store: Store) -> None:
    def build(folder: Path) -> Mapping[str, Any]:
        (folder / "x").write_text("half")
        raise KeyboardInterrupt

    ref = artifacts.plan("kind", "name", config={"a": 1})
    with pytest.raises(KeyboardInterrupt):
        artifacts.produce(store, ref, build, config={"a": 1})
    assert store.list() == []
    assert produce(store, x="1") == ref


def test_the_manifest_is_written_after_every_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    upload, write = Store.upload, Store.write_bytes

    def note_upload(self: Store, source: Path, path: str) -> None:
        written.append(path)
        upload(self, source, path)

    def note_write(self: Store, path: str, content: bytes, *, if_absent: bool = False) -> bool:
        written.append(path)
        return write(self, path, content, if_absent=if_absent)

    monkeypatch.setattr(Store, "upload", note_upload)
    monkeypatch.setattr(Store, "write_bytes", note_write)
    ref = produce(store, z="1", a="2")
    assert written == [f"{ref.path}/a", f"{ref.path}/z", f"{ref.path}/manifest.json"]


def test_a_kill_before_the_seal_leaves_an_unfinished_artifact_that_the_next_run_makes(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from echoray import artifacts;"
        "from echoray.storage import open_store;"
        f"store = open_store({str(tmp_path)!r}); artifacts.seal = lambda *a, **k: time.sleep(60);"
        "build = lambda folder: (folder / 'x').write_text('1') and {};"
        "artifacts.produce(store, artifacts.plan('kind', 'name', config={'a': 1}), build, config={'a': 1})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("kind/*/x")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    store = open_store(str(tmp_path))
    assert artifacts.find(store, artifacts.plan("kind", "name", config={"a": 1})) is None
    artifacts.verify(store, produce(store, x="2"))


def test_a_changed_file_is_found_by_verify(store: Store) -> None:
    ref = produce(store, x="content", y="other")
    artifacts.verify(store, ref)
    store.write_bytes(f"{ref.path}/x", b"Content")
    with pytest.raises(ArtifactError, match="x: content differs from the manifest"):
        artifacts.verify(store, ref)


def test_fetch_repairs_its_cache_and_refuses_a_changed_file(tmp_path: Path) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    ref = produce(store, x="content")
    folder = artifacts.fetch(store, ref, tmp_path)
    (folder / "x").write_text("cut sh")
    assert (artifacts.fetch(store, ref, tmp_path) / "x").read_text() == "content"
    store.write_bytes(f"{ref.path}/x", b"changed")
    (folder / "x").unlink()
    with pytest.raises(ArtifactError, match="differs from the manifest"):
        artifacts.fetch(store, ref, tmp_path)
    assert not (folder / "x").exists()


def test_fetch_from_a_local_store_copies_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    ref = produce(store, x="content")
    assert artifacts.fetch(store, ref, tmp_path / "cache") == tmp_path / "store" / ref.path
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged manifest"),
        (lambda text: "[]", "damaged manifest"),
        (lambda text: text.replace('"files"', '"filez"'), "damaged manifest"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "schema v9, expected v1"),
        (lambda text: text.replace('"name": "name"', '"name": "other"'), "belongs to another artifact"),
    ],
)
def test_a_wrong_manifest_is_refused_and_never_taken_for_missing(
    store: Store, change: Callable[[str], str], message: str
) -> None:
    ref = produce(store, x="content")
    path = f"{ref.path}/manifest.json"
    store.write_bytes(path, change(store.read_bytes(path).decode()).encode())
    for act in (artifacts.find, artifacts.verify, artifacts.clear):
        with pytest.raises(ArtifactError, match=message):
            act(store, ref)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "{outside}/evil", "..", ""])
def test_a_manifest_that_names_a_file_outside_the_artifact_is_refused(
    store: Store, name: str, tmp_path: Path
) -> None:
    name = name.format(outside=tmp_path / "outside")
    ref = produce(store, x="content")
    raw = json.loads(store.read_bytes(f"{ref.path}/manifest.json"))
    raw["files"][name] = hashlib.sha256(b"evil").hexdigest()
    store.write_bytes(f"{ref.path}/manifest.json", json.dumps(raw).encode())
    for act in (artifacts.find, artifacts.verify, lambda *at: artifacts.fetch(*at, tmp_path / "cache")):
        with pytest.raises(ArtifactError, match="names a file outside the artifact"):
            act(store, ref)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "outside").exists()


def test_every_file_and_its_folder_is_on_the_disk_before_the_manifest_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def note_fsync(descriptor: int) -> None:
        events.append(("disk", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        events.append(("named", f"{self} {target}"))
        return replace(self, target)

    def note_link(source: Path, target: Path) -> None:
        events.append(("named", f"{source} {target}"))
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(os, "link", note_link)
    ref = artifacts.plan("kind", "name", config={})
    store = open_store(str(tmp_path / "store"))
    digests: dict[str, str | None] = {"deep/a": artifacts.write_file(store, ref.path, "deep/a", b"1")}
    (tmp_path / "b").write_text("2")
    digests["b"] = artifacts.upload_file(store, tmp_path / "b", f"{ref.path}/b")
    artifacts.seal(store, ref, config={}, digests=digests)

    named = [index for index, (kind, _) in enumerate(events) if kind == "named"]
    folder = tmp_path / "store" / ref.path
    targets = [Path(events[index][1].split()[1]) for index in named]
    assert targets == [folder / "deep/a", folder / "b", folder / "manifest.json"]
    for index, target, limit in zip(named, targets, [named[2], named[2], len(events)], strict=True):
        assert ("disk", events[index][1].split()[0]) in events[:index], "named before its content is safe"
        assert ("disk", str(target.parent)) in events[index:limit], "the name is not safe"
    made = (folder / "deep", folder, folder.parent, tmp_path / "store")
    assert all(("disk", str(one.parent)) in events[: named[2]] for one in made)


def test_the_first_seal_stands_and_the_second_gets_its_manifest(store: Store) -> None:
    ref = artifacts.plan("kind", "name", config={})
    store.write_bytes(f"{ref.path}/x", b"1")
    first = artifacts.seal(store, ref, config={}, counts={"by": "first"})
    assert artifacts.seal(store, ref, config={}, counts={"by": "second"}) == first
    assert artifacts.find(store, ref) == first


def test_what_another_process_finished_during_the_build_is_left_as_it_is(store: Store) -> None:
    def slow(folder: Path) -> Mapping[str, Any]:
        produce(store, x="first")
        return writer(x="second", y="stray")(folder)

    ref = artifacts.plan("kind", "name", config={"a": 1})
    manifest = artifacts.produce(store, ref, slow, config={"a": 1})
    assert manifest == artifacts.find(store, ref)
    assert store.read_bytes(f"{ref.path}/x") == b"first"
    artifacts.verify(store, ref)


def test_clear_removes_leftovers_and_never_a_finished_artifact(store: Store) -> None:
    ref = produce(store, x="content")
    before = store.list()
    artifacts.clear(store, ref)
    assert store.list() == before
    other = artifacts.plan("kind", "name", config={"a": 2})
    store.write_bytes(f"{other.path}/x", b"half")
    artifacts.clear(store, other)
    assert store.list() == before


def test_a_manifest_names_the_digest_of_every_file(store: Store) -> None:
    ref = produce(store, x="abc")
    raw = json.loads(store.read_bytes(f"{ref.path}/manifest.json"))
    assert raw["files"] == {"x": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    unsealed = artifacts.plan("kind", "other", config={})
    store.write_bytes(f"{unsealed.path}/x", b"abc")
    assert artifacts.seal(store, unsealed, config={}).files == raw["files"]
