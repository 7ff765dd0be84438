"""Two runs of one configuration on a store without a lock: nothing incomplete is ever taken for finished."""

from __future__ import annotations

import itertools
import random
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from echoray import artifacts
from echoray.errors import ArtifactError, EchoRayError
from echoray.storage import Store, open_store

NAMES = ("part-0", "sub/part-1", "ledger.json")
REF = artifacts.plan("shards", "s", config={})
NUM_SCHEDULES = 100


@pytest.fixture
def store() -> Store:
    return fresh_store()


def fresh_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


@dataclass(frozen=True)
class TurnStore(Store):
    """A store that lets another writer in before every request; like S3's, its deletion is many requests."""

    pause: Callable[[], None] = field(default=lambda: None, compare=False)

    def exists(self, path: str) -> bool:
        self.pause()
        return super().exists(path)

    def list(self, prefix: str = "") -> list[str]:
        self.pause()
        return super().list(prefix)

    def read_bytes(self, path: str, end: int | None = None) -> bytes:
        self.pause()
        return super().read_bytes(path, end)

    def open(self, path: str) -> IO[bytes]:
        self.pause()
        return super().open(path)

    def write_bytes(self, path: str, content: bytes, *, if_absent: bool = False) -> bool:
        self.pause()
        return super().write_bytes(path, content, if_absent=if_absent)

    def upload(self, source: Path, path: str) -> None:
        self.pause()
        super().upload(source, path)

    def delete(self, prefix: str) -> None:
        for path in self.list(prefix):
            self.pause()
            super().delete(path)


def interleave(seed: int, store: Store, jobs: Sequence[Callable[[Store], Any]]) -> list[EchoRayError | None]:
    """Run the jobs request by request in an order drawn from ``seed``; the error that each ended with."""
    rng, back = random.Random(seed), threading.Semaphore(0)
    turns = [threading.Semaphore(0) for _ in jobs]
    errors: list[EchoRayError | None] = [None] * len(jobs)
    running = set(range(len(jobs)))

    def work(index: int) -> None:
        def pause() -> None:
            back.release()
            turns[index].acquire()

        turns[index].acquire()
        try:
            jobs[index](TurnStore(store.root, pause=pause))
        except EchoRayError as error:
            errors[index] = error
        finally:
            running.discard(index)
            back.release()

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in running]
    for thread in threads:
        thread.start()
    while running:
        turns[rng.choice(sorted(running))].release()
        assert back.acquire(timeout=10)
    return errors


def write_parts(store: Store, text: str, *, read_back: bool = False) -> None:
    """As the data steps do it (and, with ``read_back``, training): clear, write in place, seal."""
    if artifacts.find(store, REF) is not None:
        return
    artifacts.clear(store, REF)
    digests: dict[str, str | None] = {
        name: artifacts.write_file(store, REF.path, name, f"{name} {text}".encode()) for name in NAMES
    }
    artifacts.seal(store, REF, config={}, digests=dict.fromkeys(NAMES) if read_back else digests)


def train(store: Store, text: str) -> None:
    write_parts(store, text, read_back=True)


def produce(store: Store, text: str) -> None:
    def build(folder: Path) -> Mapping[str, Any]:
        (folder / "sub").mkdir()
        for name in NAMES:
            (folder / name).write_text(f"{name} {text}")
        return {}

    artifacts.produce(store, REF, build, config={})


def is_whole(store: Store) -> bool:
    """Whether the artifact is sealed; it must then have every file, as its manifest says."""
    manifest = artifacts.find(store, REF)
    if manifest is not None:
        assert set(manifest.files) == set(NAMES)
        artifacts.verify(store, REF)
    return manifest is not None


@pytest.mark.parametrize("texts", [("same", "same"), ("one", "other")])
@pytest.mark.parametrize("write", [write_parts, train, produce])
def test_whatever_the_order_of_two_writers_no_broken_artifact_is_sealed_and_a_later_run_finishes_it(
    write: Callable[[Store, str], None], texts: tuple[str, str]
) -> None:
    collisions, finished = 0, 0
    for seed in range(NUM_SCHEDULES):
        store = fresh_store()
        jobs = [lambda own, text=text: write(own, text) for text in texts]
        errors = interleave(seed, store, jobs)
        assert all(error is None or "run" in error.hint for error in errors)
        collisions += any(errors)
        finished += is_whole(store)
        write(store, texts[0])
        assert is_whole(store), f"schedule {seed}"
    assert finished > NUM_SCHEDULES / 4
    if write is produce and texts[0] == texts[1]:
        assert (collisions, finished) == (0, NUM_SCHEDULES), "the same bytes never collide"
    elif write is not train:
        assert collisions > NUM_SCHEDULES / 20, "the schedules never made the writers meet"


def test_a_writer_whose_file_another_run_cleared_is_refused_and_the_other_run_finishes(store: Store) -> None:
    first = {"part-0": artifacts.write_file(store, REF.path, "part-0", b"rows")}
    artifacts.clear(store, REF)  # the other run begins
    first["ledger.json"] = artifacts.write_file(store, REF.path, "ledger.json", b"[]")
    with pytest.raises(ArtifactError, match=r"1 files are gone or changed, first part-0") as error:
        artifacts.seal(store, REF, config={}, digests=first)
    assert "run the same command again" in error.value.hint
    assert artifacts.find(store, REF) is None
    again = {name: artifacts.write_file(store, REF.path, name, b"whole") for name in first}
    assert artifacts.seal(store, REF, config={}, digests=again).files == again
    artifacts.verify(store, REF)


def test_a_run_that_clears_while_another_seals_leaves_nothing_sealed(store: Store) -> None:
    digests = {name: artifacts.write_file(store, REF.path, name, b"rows") for name in NAMES}
    requests = itertools.count(1)

    def pause() -> None:
        if next(requests) == 3:  # after the look and the listing, before the first deletion
            artifacts.seal(store, REF, config={}, digests=digests)
            assert is_whole(store)

    artifacts.clear(TurnStore(store.root, pause=pause), REF)
    assert next(requests) > 3
    assert artifacts.find(store, REF) is None
    assert store.list() == []


def test_a_file_that_is_to_be_read_back_must_be_there_too(store: Store) -> None:
    artifacts.write_file(store, REF.path, "stage.json", b"{}")
    with pytest.raises(ArtifactError, match=r"first model\.safetensors"):
        artifacts.seal(store, REF, config={}, digests={"model.safetensors": None, "stage.json": None})
    assert artifacts.find(store, REF) is None


def test_a_leftover_that_the_writer_did_not_write_is_no_part_of_the_artifact(store: Store) -> None:
    store.write_bytes(f"{REF.path}/part-00099", b"of another attempt")
    digests = {"part-0": artifacts.write_file(store, REF.path, "part-0", b"rows")}
    assert artifacts.seal(store, REF, config={}, digests=digests).files == digests
    assert store.list() == [f"{REF.path}/manifest.json", f"{REF.path}/part-0"]


def test_a_seal_that_was_refused_without_a_manifest_to_be_found_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "write_bytes", lambda *_, **__: False)
    with pytest.raises(ArtifactError, match="was there and is gone again"):
        artifacts.seal(store, REF, config={}, digests={})
