"""Artifacts that hold items: ``part-*.parquet`` of ``item_schema``, numbered as the studies' parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from echoray import artifacts
from echoray.data.instruct.items import Item, item_schema
from echoray.data.ledger import LEDGER_FILE, write_rows
from echoray.data.parts import part_name, part_paths
from echoray.errors import InputDataError
from echoray.storage import Store
from echoray.types import ArtifactRef, Conversation, Ledger

_ROWS = 512


def item_batches(store: Store, path: str) -> Iterator[list[Item]]:
    """The items of one Parquet file, some hundred at a time; InputDataError where a column is missing."""
    import pyarrow.parquet as pq

    with store.open(path) as handle:
        file = pq.ParquetFile(handle)
        missing = set(item_schema().names) - set(file.schema_arrow.names)
        if missing:
            raise InputDataError(
                f"{store.uri(path)}: no column {min(missing)}, expected a file of items", hint="make it again"
            )
        for batch in file.iter_batches(_ROWS):
            yield [Item.from_row(row) for row in batch.to_pylist()]


def items_of(store: Store, ref: ArtifactRef) -> Iterator[Item]:
    """Every item of an artifact in its order; some hundred are in memory."""
    for path in part_paths(store, ref):
        yield from items_of_part(store, path)


def items_of_part(store: Store, path: str) -> Iterator[Item]:
    """Every item of one part in its order."""
    for batch in item_batches(store, path):
        yield from batch


def seal_items(
    store: Store,
    ref: ArtifactRef,
    rows: Sequence[Ledger],
    *,
    plan: Any,
    parents: Sequence[ArtifactRef],
    digests: Mapping[str, str | None],
    **counts: Any,
) -> None:
    """Finish an artifact whose files are written: its ledger, then the manifest.

    The counts are the ledger's last row, and ``counts``.
    """
    files = {**digests, LEDGER_FILE: write_rows(store, ref.path, rows)}
    seen = {**asdict(rows[-1]), **counts}
    artifacts.seal(store, ref, config=plan, parents=parents, counts=seen, digests=files)


def conversations_of_part(store: Store, kept: ArtifactRef, number: int) -> dict[str, list[Conversation]]:
    """The conversations of one part by study."""
    found: dict[str, list[Conversation]] = {}
    for one in items_of_part(store, f"{kept.path}/{part_name(number)}"):
        made = Conversation(
            one.item_id, one.study_hash, one.system, one.task, one.language, one.prompt, one.answer
        )
        found.setdefault(one.study_hash, []).append(made)
    return found
