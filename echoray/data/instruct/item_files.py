"""Artifacts that hold items: ``part-*.parquet`` of ``item_schema``, numbered as the studies' parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from echoray import artifacts
from echoray.data.instruct.items import Item, item_schema
from echoray.data.ledger import LEDGER_FILE
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


def write_item_ledger(store: Store, ref: ArtifactRef, rows: Sequence[Ledger]) -> str:
    """Write ``ledger.json``; its sha256. The rejected items are files of their own."""
    content = json.dumps([asdict(row) for row in rows], indent=1).encode()
    return artifacts.write_file(store, ref.path, LEDGER_FILE, content)


def conversations_of_part(store: Store, kept: ArtifactRef, number: int) -> dict[str, list[Conversation]]:
    """The conversations of one part by study."""
    found: dict[str, list[Conversation]] = {}
    for one in items_of_part(store, f"{kept.path}/{part_name(number)}"):
        made = Conversation(
            one.item_id, one.study_hash, one.system, one.task, one.language, one.prompt, one.answer
        )
        found.setdefault(one.study_hash, []).append(made)
    return found
