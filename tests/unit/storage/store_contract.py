"""What every storage backend promises; the test modules run it on file://, memory:// and s3://."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from echoray.errors import StorageError
from echoray.storage import Store

NUM_RACERS = 16


class StoreContract:
    """Subclasses give a ``store`` fixture."""

    def test_what_is_written_can_be_read_sized_listed_and_deleted(self, store: Store) -> None:
        store.write_bytes("a/b/c.bin", b"first")
        store.write_bytes("a/b/c.bin", b"second one")
        assert store.read_bytes("a/b/c.bin") == b"second one"
        assert store.size("a/b/c.bin") == 10
        with store.open("a/b/c.bin") as handle:
            handle.seek(7)
            assert handle.read() == b"one"
        assert store.list() == ["a/b/c.bin"]
        store.delete("a")
        assert store.list() == [] and not store.exists("a/b/c.bin")

    def test_listing_is_sorted_relative_and_keeps_to_its_prefix(self, store: Store) -> None:
        for path in ("part/2", "part/10", "party/1", "part/sub/x y", "other"):
            store.write_bytes(path, b"")
        assert store.list("part") == ["part/10", "part/2", "part/sub/x y"]
        assert store.list("part/sub") == ["part/sub/x y"]
        assert store.at("part").list("sub") == ["sub/x y"]
        assert store.list("nothing") == []

    def test_what_is_not_there_is_an_error_on_reading_and_none_on_deleting(self, store: Store) -> None:
        for read in (store.read_bytes, store.size, store.open):
            with pytest.raises(StorageError, match="missing/file: not found") as error:
                read("missing/file")
            assert "run the step" in error.value.hint
        store.delete("missing")
        assert not store.exists("missing/file")

    def test_a_conditional_write_happens_only_where_nothing_is(self, store: Store) -> None:
        assert store.write_bytes("one", b"first", if_absent=True)
        assert not store.write_bytes("one", b"second", if_absent=True)
        assert store.read_bytes("one") == b"first"

    def test_one_of_sixteen_racing_writers_wins(self, store: Store) -> None:
        barrier = threading.Barrier(NUM_RACERS)

        def race(number: int) -> bool:
            barrier.wait()
            return store.write_bytes("prize", str(number).encode() * 1000, if_absent=True)

        with ThreadPoolExecutor(NUM_RACERS) as pool:
            won = list(pool.map(race, range(NUM_RACERS)))
        assert won.count(True) == 1
        assert store.read_bytes("prize") == str(won.index(True)).encode() * 1000

    def test_files_travel_both_ways(self, store: Store, tmp_path: Path) -> None:
        source, target = tmp_path / "from.bin", tmp_path / "deep" / "to.bin"
        source.write_bytes(bytes(range(256)) * 50_000)
        store.upload(source, "x/file.bin")
        store.download("x/file.bin", target)
        assert target.read_bytes() == source.read_bytes()
        with pytest.raises(StorageError, match="not found"):
            store.download("x/other.bin", target)
        assert [path.name for path in target.parent.iterdir()] == ["to.bin"]

    def test_a_path_never_leaves_the_store(self, store: Store) -> None:
        inner = store.at("inner")
        for path in ("../outside", "/outside", "a/../../outside"):
            with pytest.raises(StorageError, match="leaves the store"):
                inner.write_bytes(path, b"x")
        assert store.list() == []

    def test_a_store_travels_to_other_processes(self, store: Store) -> None:
        store.write_bytes("here", b"yes")
        again = pickle.loads(pickle.dumps(store))
        assert again == store and again.read_bytes("here") == b"yes"
