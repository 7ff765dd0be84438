"""Counting what goes in, comes out and is quarantined; written beside the data it describes."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from echoray.artifacts import write_file
from echoray.storage import Store
from echoray.types import Ledger, Rejection

LEDGER_FILE = "ledger.json"
QUARANTINE_FILE = "quarantine.parquet"


def ledger_row(
    step: str,
    records_in: int,
    records_out: int,
    rejections: Iterable[Rejection],
    *,
    shortened: Mapping[str, int] | None = None,
) -> Ledger:
    """One ledger row; ValueError where the counts do not reconcile."""
    reasons = Counter(one.reason for one in rejections if one.step == step)
    return Ledger(step, records_in, records_out, dict(sorted(reasons.items())), dict(shortened or {}))


def read_ledger(store: Store, path: str) -> tuple[Ledger, ...]:
    """The rows of the ledger below ``path``; ValueError where one does not reconcile."""
    return tuple(Ledger(**row) for row in json.loads(store.read_bytes(f"{path}/{LEDGER_FILE}")))


def write_ledger(
    store: Store, path: str, rows: Sequence[Ledger], rejections: Sequence[Rejection]
) -> dict[str, str]:
    """Write ``ledger.json`` and ``quarantine.parquet`` (record, step, reason, detail) below ``path``.

    The result maps the two names to the sha256 of what was written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(rejections, key=lambda one: (one.step, one.record, one.reason))
    columns = {
        name: [getattr(one, name) for one in ordered] for name in ("record", "step", "reason", "detail")
    }
    target = io.BytesIO()
    pq.write_table(
        pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), target
    )
    quarantine = write_file(store, path, QUARANTINE_FILE, target.getvalue())
    return {QUARANTINE_FILE: quarantine, LEDGER_FILE: write_rows(store, path, rows)}


def write_rows(store: Store, path: str, rows: Sequence[Ledger]) -> str:
    """Write ``ledger.json`` alone, where what was rejected lies in files of its own; its sha256 (hex)."""
    content = json.dumps([asdict(row) for row in rows], indent=1)
    return write_file(store, path, LEDGER_FILE, content.encode())


def added(step: str, ledgers: Iterable[Ledger]) -> Ledger:
    """One ledger of the parts of a step."""
    rows = list(ledgers)
    reasons: Counter[str] = Counter()
    for one in rows:
        reasons.update(one.quarantined)
    into, out = sum(one.records_in for one in rows), sum(one.records_out for one in rows)
    return Ledger(step, into, out, dict(sorted(reasons.items())))
