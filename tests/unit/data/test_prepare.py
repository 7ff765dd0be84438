"""A folder of DICOM files becomes clean rows: counts reconcile, a patient has one split, nobody is named."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echoray.config import DataConfig
from echoray.config.data import PhantomConfig
from echoray.data.deidentify.pixels import RapidTextReader
from echoray.data.ledger import LEDGER_FILE, QUARANTINE_FILE, ledger_row, write_ledger
from echoray.data.phantom import synthesize_study, write_corpus, write_study
from echoray.data.prepare import STEPS, PrepareFolders
from echoray.data.sources.dicom import StudyFiles, list_studies
from echoray.data.split import leaked_patients, split_of
from echoray.storage import open_store
from echoray.types import Rejection

CONFIG = DataConfig.model_validate(
    {"deidentify": {"key_ref": "synthetic", "pixels": False}, "image_size_px": 56}
)
PHANTOM = PhantomConfig(num_studies=28, width=320, height=240, patients_with_two_studies_rate=0.5)
Prepared = tuple[list[dict[str, Any]], list[Rejection], Counter[str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("corpus")
    write_corpus(out, PHANTOM, seed=7, language="en")
    (out / "study-00001" / "notes.txt").write_text("not a DICOM file")
    return out, [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def prepared(corpus: tuple[Path, list[dict[str, Any]]]) -> Prepared:
    worker = PrepareFolders(CONFIG, b"key", seed=3)
    rows, rejections, counts = [], [], Counter[str]()
    for files in list_studies(open_store(str(corpus[0])), "phantom"):
        found = worker.prepare(files)
        rows += found[0]
        rejections += found[1]
        counts.update(found[2])
    return rows, rejections, counts


def test_every_step_reconciles_and_every_fault_is_quarantined_under_its_name(
    corpus: tuple[Path, list[dict[str, Any]]], prepared: Prepared, tmp_path: Path
) -> None:
    truths, (rows, rejections, counts) = corpus[1], prepared
    faults = Counter(truth["fault"] for truth in truths)
    num_files = len([path for path in corpus[0].rglob("*") if path.is_file()]) - 1  # without the truth
    ledger = [ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections) for step in STEPS]
    by_step = {row.step: row for row in ledger}
    assert by_step["read"].records_in == num_files
    assert sum(by_step["read"].quarantined.values()) >= 1 + faults["corrupt"]
    assert by_step["frames"].quarantined["multi_region"] == faults["multi_region"]
    assert by_step["studies"].quarantined["no_report"] == faults["no_report"]
    # Without a usable image: what was corrupt (and still has its report), and what showed two regions.
    assert by_step["studies"].quarantined["no_image"] == faults["corrupt"] + faults["multi_region"]
    assert by_step["deidentify"].records_in == by_step["deidentify"].records_out == len(rows) == faults[None]
    store = open_store(str(tmp_path))
    write_ledger(store, "prepared", ledger, rejections)
    written = json.loads(store.read_bytes(f"prepared/{LEDGER_FILE}"))
    for row in written:
        assert row["records_in"] == row["records_out"] + sum(row["quarantined"].values())
    assert store.exists(f"prepared/{QUARANTINE_FILE}")
    with pytest.raises(ValueError, match="does not reconcile"):
        ledger_row("read", counts["read_in"], counts["read_out"] - 1, rejections)


def test_rows_carry_the_clean_report_and_pictures_of_the_asked_size(
    corpus: tuple[Path, list[dict[str, Any]]], prepared: Prepared
) -> None:
    wanted = {
        (truth["system"], truth["clean_report"]["findings"], truth["clean_report"]["impression"])
        for truth in corpus[1]
        if truth["fault"] is None
    }
    assert {(row["system"], row["findings"], row["impression"]) for row in prepared[0]} == wanted
    for row in prepared[0]:
        assert row["images"]
        for picture in row["images"]:
            pixels = np.asarray(Image.open(io.BytesIO(picture)))
            assert pixels.shape == (56, 56, 3) and pixels.std() > 10


def test_a_patient_with_two_studies_is_one_key_in_one_split(
    corpus: tuple[Path, list[dict[str, Any]]], prepared: Prepared
) -> None:
    sound = [truth for truth in corpus[1] if truth["fault"] is None]
    people = Counter(truth["patient"]["patient"]["patient_id"] for truth in sound)
    keys = Counter(row["patient_key"] for row in prepared[0])
    assert sorted(people.values()) == sorted(keys.values()) and max(keys.values()) == 2
    assert leaked_patients([(row["patient_key"], row["split"]) for row in prepared[0]]) == []
    assert leaked_patients([("a", "train"), ("a", "test"), ("b", "test")]) == ["a"]
    for row in prepared[0]:
        assert row["split"] == split_of(row["patient_key"], CONFIG.split, seed=3)


def test_split_shares_are_the_configured_ones_and_depend_on_the_seed() -> None:
    splits = [split_of(f"patient {number}", CONFIG.split, seed=1) for number in range(20_000)]
    shares = {name: count / len(splits) for name, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.75, "validation": 0.05, "test": 0.2}, abs=0.015)
    other = [split_of(f"patient {number}", CONFIG.split, seed=2) for number in range(20_000)]
    assert 0.3 < np.mean([one != two for one, two in zip(splits, other, strict=True)]) < 0.5


def test_no_row_rejection_or_count_names_anyone(
    corpus: tuple[Path, list[dict[str, Any]]], prepared: Prepared
) -> None:
    rows, rejections, counts = prepared
    bare = [{name: value for name, value in row.items() if name != "images"} for row in rows]
    told = json.dumps([bare, [asdict(one) for one in rejections], counts], ensure_ascii=False)
    for truth in corpus[1]:
        person, visit = truth["patient"]["patient"], truth["patient"]["visit"]
        texts = [*person.values(), *person["name"].split(), *visit.values(), visit["date"].replace("-", "")]
        named = [text for text in texts if isinstance(text, str) and len(text) > 2 and text in told]
        assert not named
    assert str(corpus[0]) not in told and "study-000" not in told
    for row in rows:
        assert re.fullmatch("[0-9a-f]{64}", row["study_hash"]) and re.fullmatch(
            "[0-9a-f]{64}", row["patient_key"]
        )


def test_the_pictures_of_a_row_name_nobody(tmp_path: Path) -> None:
    study = synthesize_study(1, seed=11, language="en", width=640, height=480)
    write_study(study, tmp_path)
    store = open_store(str(tmp_path))
    files = {"folder": {"store": store, "paths": tuple(store.list()), "source": "phantom"}}
    texts: dict[bool, str] = {}
    for pixels in (True, False):
        config = CONFIG.model_copy(
            update={
                "image_size_px": 644,
                "deidentify": CONFIG.deidentify.model_copy(update={"pixels": pixels}),
            }
        )
        row = PrepareFolders(config, b"key", seed=3)(files)
        reader = RapidTextReader()
        seen = [np.asarray(Image.open(io.BytesIO(one))) for one in row["studies"][0]["images"]]
        texts[pixels] = (
            "".join(text.text for one in seen for text in reader.read(one)).upper().replace(" ", "")
        )
        assert json.loads(row["rejections"]) == [] and json.loads(row["counts"])["deidentify_out"] == 1
    for word in ("STEFAN", "LINDQVIST", "91306542", "HARROWGATE", "1954"):
        assert word in texts[False]
        assert word not in texts[True]
    assert "KIDNEY" in texts[True] and "21.2MM" in texts[True]


def test_the_row_function_takes_what_ray_data_hands_it(corpus: tuple[Path, list[dict[str, Any]]]) -> None:
    files: StudyFiles = list_studies(open_store(str(corpus[0])), "phantom")[0]
    row = {"folder": {"store": files.store, "paths": list(files.paths), "source": files.source}}
    out = PrepareFolders(CONFIG, b"key", seed=3)(row)
    assert json.loads(out["counts"])["read_in"] == len(files.paths)
    assert [one["source"] for one in out["studies"]] == ["phantom"]
