"""Items survive Parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from echoray.data.instruct.items import PARTS, Item, Part, Provenance, item_schema
from echoray.data.parts import read_rows, to_parquet
from echoray.storage import open_store

ONE = Item(
    item_id="a" * 16 + "-risk-0",
    study_hash="a" * 64,
    system="thyroid",
    language="zh",
    part="risk",
    form="open",
    prompt="TI-RADS 分级？",
    answer="TI-RADS 4a。",
    provenance=Provenance("rules", "rules", "thyroid-nodule", "b" * 64, 2**40),
)


def test_an_item_comes_back_from_parquet_as_it_was(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    items = [ONE, replace(ONE, part="report", prompt="", answer="line\nline")]
    store.write_bytes("items.parquet", to_parquet([one.to_row() for one in items], item_schema()))
    assert [Item.from_row(row) for row in read_rows(store, "items.parquet")] == items


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_of_one_task(part: Part) -> None:
    expected = part if part in ("report", "diagnosis") else "vqa"
    assert replace(ONE, part=part).task == expected
