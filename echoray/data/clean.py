"""Clean studies as the studies artifact stores them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from echoray.data.parts import part_paths
from echoray.storage import Store
from echoray.types import ArtifactRef, Report, Study, Turn

_ROWS = 16  # read at once: a row holds pictures


def study_of(row: Mapping[str, Any]) -> Study:
    """The study of a row, without frames; its pictures are the row's ``images``."""
    report = Report(row["findings"], row["impression"]) if row["findings"] or row["impression"] else None
    turns = tuple(Turn(**one) for one in json.loads(row["turns"]))
    named = {name: row[name] for name in ("study_hash", "patient_key", "system", "language", "source")}
    return Study(**named, frames=(), report=report, turns=turns)


def clean_rows(
    store: Store, studies: ArtifactRef, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Every row of the artifact in its order (of ``columns``, where named); a few at a time are in memory."""
    for path in part_paths(store, studies):
        yield from rows_of_part(store, path, columns)


def rows_of_part(store: Store, path: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every row of one part; a few at a time are in memory."""
    import pyarrow.parquet as pq

    with store.open(path) as handle:
        for batch in pq.ParquetFile(handle).iter_batches(_ROWS, columns=columns and list(columns)):
            yield from batch.to_pylist()
