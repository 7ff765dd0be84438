"""Steps whose workers write an artifact part by part; an interrupted one goes on with the parts it lacks.

A part is committed by its record, which is written after its files. Records lie beside the artifact, not in
it, and go when it is sealed.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echoray import artifacts
from echoray.data.streaming import streamed_by_actors
from echoray.storage import Store
from echoray.types import ArtifactRef

if TYPE_CHECKING:
    import pyarrow as pa

_RECORDS, _ATTEMPTS = "progress", "attempts"
_DEATHS = 2


@dataclass(frozen=True)
class Part:
    """A committed part: sha256 by the name of each of its files, and what its worker says of it (JSON)."""

    number: int
    files: Mapping[str, str]
    summary: Mapping[str, Any]


def commit(
    store: Store, ref: ArtifactRef, number: int, files: Mapping[str, bytes], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a part's files and then its record; the row that a worker hands back."""
    digests = {name: artifacts.write_file(store, ref.path, name, content) for name, content in files.items()}
    record = json.dumps({"number": number, "files": digests, "summary": summary}, ensure_ascii=False)
    store.write_bytes(_record(ref, number), record.encode())
    return {"record": record}


def made_parts(
    store: Store,
    ref: ArtifactRef,
    works: Sequence[Mapping[str, Any]],
    worker: type,
    arguments: tuple[Any, ...],
    *,
    num_workers: int,
) -> Iterator[Part]:
    """The part of each of ``works`` (which name their ``number``), in order; none is made again.

    ``worker(*arguments)`` is called with {"work": one of works} and returns what ``commit`` returned.
    """
    done = _committed(store, ref)
    todo = [{"work": work} for work in works if work["number"] not in done]
    rows: Iterator[dict[str, Any]] = iter(())
    if todo:
        rows = streamed_by_actors(todo, len(todo), worker, arguments, num_workers=num_workers)
    for work in works:
        yield done.get(work["number"]) or Part(**json.loads(next(rows)["record"]))


class Attempts:
    """What a part's workers died of: a record that kills them must end in quarantine, not be tried for ever.

    From the second attempt on each record is marked while it is under way (an object in the store, which
    survives the worker), and one that a worker died in twice is not tried again.
    """

    def __init__(self, store: Store, ref: ArtifactRef, number: int) -> None:
        self._store, self._folder = store, f"{_ATTEMPTS}/{ref.path}/{number:06d}"
        self._marks = Counter(path.split("/")[-2] for path in store.list(self._folder))
        self._careful = bool(self._marks)
        self._mark("start")

    def is_deadly(self, name: str) -> bool:
        """Whether workers died in ``name``; if not, it is under way from now on."""
        if self._marks[name] >= _DEATHS:
            return True
        self._current = self._mark(name) if self._careful else None
        return False

    def survived(self) -> None:
        """The record that was under way is done."""
        if self._current:
            self._store.delete(self._current)

    def _mark(self, name: str) -> str:
        path = f"{self._folder}/{name}/{uuid.uuid4().hex}"
        self._store.write_bytes(path, b"")
        return path


def part_name(number: int, folder: str = "") -> str:
    """The name of a Parquet part below its artifact."""
    return f"{folder}part-{number:05d}.parquet"


def number_of(path: str) -> int:
    """The number in the path of a Parquet part."""
    return int(path.rpartition("/part-")[2].removesuffix(".parquet"))


def is_part(path: str) -> bool:
    """Whether ``path`` is that of a Parquet part."""
    return path.rpartition("/")[2].startswith("part-")


def part_paths(store: Store, ref: ArtifactRef) -> list[str]:
    """The paths of an artifact's parts, in their order."""
    return [path for path in store.list(ref.path) if is_part(path)]


def part_works(store: Store, ref: ArtifactRef) -> list[dict[str, Any]]:
    """Work for ``made_parts``, one for each part of an artifact and with its number: {number, path}."""
    return [{"number": number_of(path), "path": path} for path in part_paths(store, ref)]


def to_parquet(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """Rows as a Parquet file; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), target, compression="zstd")
    return target.getvalue()


def read_rows(store: Store, path: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one Parquet file (of ``columns``, where named)."""
    import pyarrow.parquet as pq

    with store.open(path) as handle:
        rows: list[dict[str, Any]] = pq.read_table(handle, columns=columns and list(columns)).to_pylist()
    return rows


def forget_progress(store: Store, ref: ArtifactRef) -> None:
    """Remove the records of a finished or abandoned artifact."""
    store.delete(f"{_RECORDS}/{ref.path}")
    store.delete(f"{_ATTEMPTS}/{ref.path}")


def _committed(store: Store, ref: ArtifactRef) -> dict[int, Part]:
    """The parts of an interrupted attempt whose files are still there."""
    paths = store.list(f"{_RECORDS}/{ref.path}")
    present = set(store.list(ref.path)) if paths else set()
    parts = (Part(**json.loads(store.read_bytes(path))) for path in paths)
    return {one.number: one for one in parts if all(f"{ref.path}/{name}" in present for name in one.files)}


def _record(ref: ArtifactRef, number: int) -> str:
    return f"{_RECORDS}/{ref.path}/{number:06d}.json"
