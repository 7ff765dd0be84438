"""What went in came out or is in quarantine, with a reason."""

from __future__ import annotations

import io
import json
import random
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoray.data.ledger import LEDGER_FILE, QUARANTINE_FILE, ledger_row, write_ledger
from echoray.storage import Store, open_store
from echoray.types import Rejection

REJECTIONS = [
    Rejection("c/0", "frames", "multi_region"),
    Rejection("a", "read", "not_dicom"),
    Rejection("d", "studies", "no_report", "检查"),
    Rejection("b", "read", "unreadable_pixels"),
    Rejection("c", "read", "not_dicom"),
]


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize(("records_out", "lost"), [(6, 1), (8, -1)])
def test_a_step_that_loses_or_invents_a_record_is_an_error(records_out: int, lost: int) -> None:
    with pytest.raises(ValueError, match=rf"ledger of read does not reconcile: {lost} records"):
        ledger_row("read", 10, records_out, REJECTIONS)
    assert ledger_row("read", 10, 7, REJECTIONS).quarantined == {"not_dicom": 2, "unreadable_pixels": 1}


def test_a_rejection_of_another_step_does_not_balance_the_books() -> None:
    with pytest.raises(ValueError, match="ledger of studies does not reconcile: 1 records"):
        ledger_row("studies", 5, 3, REJECTIONS)


def test_ledger_and_quarantine_can_be_read_back_and_do_not_depend_on_the_order(store: Store) -> None:
    cut = {"truncated": 2}
    rows = [
        ledger_row("read", 10, 7, REJECTIONS),
        ledger_row("studies", 4, 3, REJECTIONS, shortened=cut),
    ]
    for path in ("one", "two"):
        write_ledger(store, path, rows, random.Random(path).sample(REJECTIONS, len(REJECTIONS)))
    for name in (LEDGER_FILE, QUARANTINE_FILE):
        assert store.read_bytes(f"one/{name}") == store.read_bytes(f"two/{name}")
    assert json.loads(store.read_bytes(f"one/{LEDGER_FILE}")) == [
        {
            "step": "read",
            "records_in": 10,
            "records_out": 7,
            "quarantined": {"not_dicom": 2, "unreadable_pixels": 1},
            "shortened": {},
        },
        {
            "step": "studies",
            "records_in": 4,
            "records_out": 3,
            "quarantined": {"no_report": 1},
            "shortened": cut,
        },
    ]
    with store.open(f"one/{QUARANTINE_FILE}") as handle:
        found = pq.read_table(handle).to_pylist()
    assert [Rejection(**row) for row in found] == [REJECTIONS[place] for place in (0, 1, 3, 4, 2)]


def test_an_empty_quarantine_has_its_columns_too(store: Store) -> None:
    write_ledger(store, "clean", [ledger_row("read", 3, 3, [])], [])
    table = pq.read_table(io.BytesIO(store.read_bytes(f"clean/{QUARANTINE_FILE}")))
    assert table.num_rows == 0
    assert {field.name: field.type for field in table.schema} == dict.fromkeys(
        ("record", "step", "reason", "detail"), pa.string()
    )
