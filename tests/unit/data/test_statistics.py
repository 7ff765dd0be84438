"""What the statistics count, and that they can do it without a picture and without a row."""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoray import artifacts
from echoray.config import load_run
from echoray.data.batch import SCHEMA_KEY, SHARD_SCHEMA
from echoray.data.ledger import ledger_row, write_ledger
from echoray.data.statistics import collect, make_statistics, write_statistics
from echoray.data.statistics.distribution import Distribution, bin_width
from echoray.data.statistics.plots import histogram, stacked_bars
from echoray.errors import ArtifactError, ShardError
from echoray.storage import Store, open_store, store_of
from echoray.types import ArtifactRef, Rejection

STUDIES, SHARDS = (ArtifactRef(kind, "few", "0" * 64) for kind in ("studies", "shards"))
SECRET = "a finding that stays in the shards"


def study(number: int, system: str, split: str, language: str, num_images: int) -> dict[str, Any]:
    return {
        **{"system": system, "split": split, "language": language, "source": "dicom"},
        **{"patient_key": f"{number // 2:016x}{0:048x}", "study_hash": f"{number:064x}"},
        **{"findings": SECRET, "impression": "Cyst." * number, "turns": "[]"},
        **{"grid_thw": [1, 10, 14] * num_images, "images": [b"no picture"] * num_images},
    }


def shard_row(system: str, task: str, tokens: tuple[int, int, int], truncated: bool) -> dict[str, Any]:
    names = ("num_tokens", "num_image_tokens", "num_answer_tokens")
    return {
        **{"system": system, "task": task, "language": "en", "truncated": truncated},
        **dict(zip(names, tokens, strict=True)),
        **{"images": [b"no picture"], "answer": SECRET},
    }


ROWS = [
    study(0, "liver", "train", "en", 1),
    study(1, "liver", "test", "en", 2),
    study(2, "heart", "train", "zh", 2),
]
EXAMPLES = {
    "train": [
        shard_row("liver", "report", (100, 70, 20), True),
        shard_row("heart", "vqa", (90, 70, 5), False),
    ],
    "test": [shard_row("liver", "report", (60, 35, 11), False)],
}


def parquet(rows: list[dict[str, Any]], schema: bytes = SHARD_SCHEMA) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({SCHEMA_KEY: schema}), target)
    return target.getvalue()


def fill(store: Store, studies: list[dict[str, Any]], examples: dict[str, list[dict[str, Any]]]) -> Store:
    for number, row in enumerate(studies):
        store.write_bytes(f"{STUDIES.path}/part-{number:05d}.parquet", parquet([row]))
    for split, rows in examples.items():
        store.write_bytes(f"{SHARDS.path}/{split}/part-00000.parquet", parquet(rows))
    lost = [Rejection("a", "read", "not_dicom"), Rejection("b", "tokenize", "too_long")]
    write_ledger(store, STUDIES.path, [ledger_row("read", len(studies) + 1, len(studies), lost)], lost[:1])
    num = sum(map(len, examples.values()))
    tokenized = ledger_row("tokenize", num + 1, num, lost, shortened={"truncated": 1})
    write_ledger(store, SHARDS.path, [tokenized], lost[1:])
    return store


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def test_every_study_image_example_and_loss_is_counted_once(store: Store, tmp_path: Path) -> None:
    write_statistics("few", collect(fill(store, ROWS, EXAMPLES), STUDIES, SHARDS), tmp_path)
    found = json.loads((tmp_path / "stats.json").read_text())
    assert found["num_patients"] == 2
    cases = {(one["system"], one["split"]): (one["num_studies"], one["num_images"]) for one in found["cases"]}
    assert cases == {("liver", "train"): (1, 1), ("liver", "test"): (1, 2), ("heart", "train"): (1, 2)}
    assert found["pictures"] == [{"width_px": 196, "height_px": 140, "num_images": 5}]
    with (tmp_path / "examples.csv").open(newline="") as handle:
        rows = {(row["system"], row["split"], row["task"]): row for row in csv.DictReader(handle)}
    assert rows.keys() == {
        ("liver", "train", "report"),
        ("heart", "train", "vqa"),
        ("liver", "test", "report"),
    }
    assert list(rows["liver", "train", "report"].values())[3:] == ["en", "1", "1", "100", "70", "20"]
    with (tmp_path / "lengths.csv").open(newline="") as handle:
        lengths = Counter({(row[0], int(row[1])): int(row[2]) for row in list(csv.reader(handle))[1:]})
    assert (
        lengths["report_characters_en", len(SECRET)] == lengths["report_characters_en", len(SECRET) + 6] == 1
    )
    assert lengths["report_characters_zh", len(SECRET) + 11] == 1
    assert (lengths["images_per_study", 2], lengths["image_tokens", 70]) == (2, 2)
    assert (tmp_path / "quarantine.csv").read_text().split() == [
        "step,reason,records", "read,not_dicom,1", "tokenize,too_long,1"
    ]  # fmt: skip
    page = (tmp_path / "statistics.html").read_text()
    assert "liver (2)" in page and "heart (1)" in page and "breast (0)" in page
    assert "tokenize: too_long (1)" in page and "truncated 1" in page
    everything = "".join(path.read_text() for path in tmp_path.iterdir())
    assert SECRET not in everything and "0" * 40 not in everything


def test_the_page_is_well_formed_loads_nothing_and_has_no_id_twice(store: Store, tmp_path: Path) -> None:
    write_statistics("<script>x", collect(fill(store, ROWS, EXAMPLES), STUDIES, SHARDS), tmp_path)
    page = (tmp_path / "statistics.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 9
    ids = re.findall(r'(?<![\w-])id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 50
    for target in re.findall(r'(?:url\(|href=")#([^)"]+)', page):
        assert target in ids
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg.replace("xlink:href", "href"))
    again = tmp_path / "again"
    again.mkdir()
    write_statistics("<script>x", collect(store, STUDIES, SHARDS), again)
    assert (again / "statistics.html").read_text() == page


def test_an_empty_dataset_has_a_page_and_zeros(store: Store, tmp_path: Path) -> None:
    write_statistics("none", collect(fill(store, [], {}), STUDIES, SHARDS), tmp_path)
    found = json.loads((tmp_path / "stats.json").read_text())
    assert (found["num_patients"], found["cases"], found["examples"], found["lengths"]) == (0, [], [], {})
    assert "None." in (tmp_path / "statistics.html").read_text()


def test_pictures_are_never_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, ROWS, EXAMPLES)
    asked: list[str] = []
    original = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *rows: int, **options: Any) -> Any:
        asked.extend(options["columns"])
        return original(self, *rows, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    collect(store, STUDIES, SHARDS)
    assert {"grid_thw", "num_tokens"} <= set(asked)
    assert not {"images", "answer", "input_ids"} & set(asked)


def test_statistics_are_an_artifact_of_both_and_need_them_finished(tmp_path: Path) -> None:
    run = load_run("tiny").merged({"workspace": str(tmp_path)})
    store = fill(store_of(run), ROWS, EXAMPLES)
    with pytest.raises(ArtifactError, match="not there or not finished"):
        make_statistics(run, STUDIES, SHARDS)
    for ref in (STUDIES, SHARDS):
        artifacts.seal(store, ref, config={})
    ref = make_statistics(run, STUDIES, SHARDS)
    manifest = artifacts.require(store, ref, made_by="a test")
    assert (manifest.parents, manifest.counts) == ((STUDIES, SHARDS), {"studies": 3, "examples": 3})
    before = store.read_bytes(f"{ref.path}/stats.json")
    store.write_bytes(f"{SHARDS.path}/train/part-00000.parquet", b"unreadable")
    assert make_statistics(run, STUDIES, SHARDS) == ref
    assert store.read_bytes(f"{ref.path}/stats.json") == before


def test_shards_of_another_schema_are_refused(store: Store) -> None:
    fill(store, ROWS, EXAMPLES)
    store.write_bytes(f"{SHARDS.path}/train/part-00001.parquet", parquet(EXAMPLES["train"], b"0"))
    with pytest.raises(ShardError, match="schema"):
        collect(store, STUDIES, SHARDS)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]))
def test_quantiles_and_bins_are_those_of_the_values(values: list[int], share: float) -> None:
    one = Distribution(Counter(values))
    assert one.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    assert one.mean == pytest.approx(np.mean(values))
    width = bin_width(min(values), max(values), 40)
    start = min(values) // width * width
    bins = one.bins(width, start, max(values))
    assert sum(found.count for found in bins) == len(values) and len(bins) <= 41
    edges = [found.first for found in bins] + [bins[-1].last + 1]
    np.testing.assert_array_equal([found.count for found in bins], np.histogram(values, edges)[0])


def test_a_plot_of_nothing_is_nothing() -> None:
    assert stacked_bars("a", "t", {"liver": {"train": 0}}, "studies") == ""
    assert histogram("a", "t", {"en": Distribution({})}, "x", "y") == ""
