"""A folder of DICOM files becomes clean rows: counts reconcile, a patient has one split, nobody is named."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from echoray.config import DataConfig
from echoray.config.data import PhantomConfig
from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.pixels import RapidTextReader, ReadText, RedactedFrame
from echoray.data.ledger import LEDGER_FILE, QUARANTINE_FILE, ledger_row, write_ledger
from echoray.data.parts import read_rows
from echoray.data.phantom import synthesize_study, write_corpus, write_study
from echoray.data.phantom.dicom import report_dataset, to_bytes
from echoray.data.prepare import STEPS, PrepareStudies, WriteStudies
from echoray.data.records import FORGOTTEN
from echoray.data.sources.index import PACKAGE, StudyFiles, group_studies, list_source, read_header
from echoray.data.sources.samples import package_samples
from echoray.data.split import leaked_patients, split_of
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef, Box, Frame, Rejection
from tests.unit.data.test_dicom_source import grey

CONFIG = DataConfig.model_validate(
    {"deidentify": {"key_ref": "synthetic", "pixels": False}, "image_size_px": 56}
)
PHANTOM = PhantomConfig(num_studies=28, width=320, height=240, patients_with_two_studies_rate=0.5)
WORKER_STEPS = STEPS[:-1]  # the last one sees all studies
Prepared = tuple[list[dict[str, Any]], list[Rejection], Counter[str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("corpus")
    write_corpus(out, PHANTOM, seed=7, language="en")
    (out / "study-00001" / "notes.txt").write_text("not a DICOM file")
    return out, [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]


def studies_of(store: Store, source: str) -> list[StudyFiles]:
    files = list_source(store, source).files
    return group_studies(files, [read_header(file) for file in files])


@pytest.fixture(scope="module")
def prepared(corpus: tuple[Path, list[dict[str, Any]]]) -> Prepared:
    worker = PrepareStudies(CONFIG, b"key", seed=3)
    rows, rejections, counts = [], [], Counter[str]()
    for files in studies_of(open_store(str(corpus[0])), "corpus"):
        row, record = worker.prepare(files)
        rows += [] if row is None else [row]
        rejections += record.rejections
        counts.update(record.counts)
    return rows, rejections, counts


def test_every_step_reconciles_and_every_fault_is_quarantined_under_its_name(
    corpus: tuple[Path, list[dict[str, Any]]], prepared: Prepared, tmp_path: Path
) -> None:
    truths, (rows, rejections, counts) = corpus[1], prepared
    faults = Counter(truth["fault"] for truth in truths)
    num_files = len([path for path in corpus[0].rglob("*") if path.is_file()]) - 1  # without the truth
    ledger = [
        ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections) for step in WORKER_STEPS
    ]
    by_step = {row.step: row for row in ledger}
    assert by_step["read"].records_in == num_files
    assert sum(by_step["read"].quarantined.values()) >= 1 + faults["corrupt"]
    assert by_step["frames"].quarantined["multi_region"] == faults["multi_region"]
    assert by_step["studies"].quarantined["no_report"] == faults["no_report"]
    # Without a usable image: what was corrupt (and still has its report), and what showed two regions.
    assert by_step["studies"].quarantined["no_image"] == faults["corrupt"] + faults["multi_region"]
    # Whatever was read goes through de-identification, whether its study is of use in the end or not.
    assert (*WORKER_STEPS, "audit") == STEPS
    assert by_step["deidentify"].records_in == by_step["studies"].records_in == len(truths)
    assert by_step["studies"].records_out == len(rows) == faults[None]
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
        assert row["images"] and row["grid_thw"] == [1, 4, 4] * len(row["images"])
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
    bare = [
        {name: value for name, value in row.items() if name not in ("images", "fingerprints")} for row in rows
    ]
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
    (files,) = studies_of(open_store(str(tmp_path)), "corpus")
    texts: dict[bool, str] = {}
    for pixels in (True, False):
        config = CONFIG.model_copy(
            update={
                "image_size_px": 644,
                "deidentify": CONFIG.deidentify.model_copy(update={"pixels": pixels}),
            }
        )
        row, record = PrepareStudies(config, b"key", seed=3).prepare(files)
        assert row is not None
        reader = RapidTextReader()
        seen = [np.asarray(Image.open(io.BytesIO(one))) for one in row["images"]]
        texts[pixels] = (
            "".join(text.text for one in seen for text in reader.read(one)).upper().replace(" ", "")
        )
        assert record.rejections == () and record.counts["deidentify_out"] == 1
    for word in ("STEFAN", "LINDQVIST", "91306542", "HARROWGATE", "1954"):
        assert word in texts[False]
        assert word not in texts[True]
    assert "KIDNEY" in texts[True] and "21.2MM" in texts[True]


def test_a_part_is_the_same_when_its_rows_are_taken_over(
    corpus: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    studies = studies_of(open_store(str(corpus[0])), "corpus")[:8]
    store, refs = open_store(str(tmp_path)), [ArtifactRef("studies", name, name * 64) for name in "ab"]
    arguments = (CONFIG, b"key", 3, frozenset[str]())
    work = {"number": 5, "studies": [vars(one) for one in studies], "records": "[]", "reused": "{}"}
    first = json.loads(WriteStudies(store, refs[0], *arguments)({"work": work})["record"])
    records = first["summary"]["records"]
    half = {f"{refs[0].path}/part-00005.parquet": [one["study_hash"] for one in records[:2]]}
    work |= {
        "studies": [vars(one) for one in studies[2:]],
        "records": json.dumps(records[:2]),
        "reused": json.dumps(half),
    }
    second = json.loads(WriteStudies(store, refs[1], *arguments)({"work": work})["record"])
    assert second == first
    assert list(first["files"]) == ["part-00005.parquet"]
    kept = [one["study_hash"] for one in records if one["counts"].get("studies_out")]
    rows = read_rows(store, f"{refs[1].path}/part-00005.parquet")
    assert [one["study_hash"] for one in rows] == sorted(kept) and len(kept) > 2


def test_a_forgotten_patient_is_read_and_goes_no_further(
    corpus: tuple[Path, list[dict[str, Any]]], prepared: Prepared
) -> None:
    forgotten = prepared[0][0]["patient_key"]
    worker = PrepareStudies(CONFIG, b"key", seed=3, forgotten=frozenset((forgotten,)))
    for files in studies_of(open_store(str(corpus[0])), "corpus"):
        row, record = worker.prepare(files)
        if record.patient_key == forgotten:
            assert row is None and record.frames == () and record.rejected_for(FORGOTTEN)
            for step in WORKER_STEPS:
                ledger_row(
                    step,
                    record.counts.get(f"{step}_in", 0),
                    record.counts.get(f"{step}_out", 0),
                    record.rejections,
                )
        else:
            assert not record.rejected_for(FORGOTTEN)


class Watching:
    """A reader that finds one name in each frame."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def read(self, pixels_HW3: np.ndarray) -> list[ReadText]:
        self.shapes.append(pixels_HW3.shape)
        return [ReadText(Box(5, 5, 100, 20), "Grace Okafor", 0.9)]


def test_real_package_files_take_the_same_path_through_deidentification(tmp_path: Path) -> None:
    samples = package_samples()
    assert len(samples) >= 7
    store = open_store(str(tmp_path))
    for sample in samples:
        store.write_bytes(f"{PACKAGE}/{sample.name}", sample.read_bytes())
    config = CONFIG.model_copy(update={"max_frames": 2})
    worker, reader, counts = PrepareStudies(config, b"key", seed=3), Watching(), Counter[str]()
    worker.deidentifier = Deidentifier(reader=reader)
    rejections = []
    for files in studies_of(store, "corpus"):
        assert len(files.files) == 1
        row, record = worker.prepare(files)
        assert row is None
        rejections += record.rejections
        counts.update(record.counts)
    for step in WORKER_STEPS:
        ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections)
    assert counts["read_in"] == counts["deidentify_out"] == counts["studies_in"] == len(samples)
    assert Counter(one.reason for one in rejections if one.step == "studies") == {"no_report": len(samples)}
    used = len(samples) - len({one.record[:64] for one in rejections if one.reason == "multi_region"})
    assert used <= counts["frames_out"] <= 2 * used  # at least a frame of each, and never more than two
    assert len(reader.shapes) >= used  # each file's first frame whole, then what changed


def test_a_real_file_with_a_report_becomes_a_row_without_its_burned_in_hospital(tmp_path: Path) -> None:
    (sample,) = [one for one in package_samples() if one.name == "US1_UNCR.dcm"]
    header = pydicom.dcmread(io.BytesIO(sample.read_bytes()))
    report = report_dataset(synthesize_study(0, seed=11, language="en", width=320, height=240), [header])
    report.StudyInstanceUID, report.PatientID = header.StudyInstanceUID, header.PatientID
    store = open_store(str(tmp_path))
    store.write_bytes("series-1/image.dcm", sample.read_bytes())
    store.write_bytes("series-2/report.dcm", to_bytes(report))
    (files,) = studies_of(store, "dicom")
    config = CONFIG.model_copy(
        update={"image_size_px": 644, "deidentify": CONFIG.deidentify.model_copy(update={"pixels": True})}
    )
    row, _ = PrepareStudies(config, b"key", seed=3).prepare(files)
    assert row is not None
    reader = RapidTextReader()
    (pixels,) = [np.asarray(Image.open(io.BytesIO(one))) for one in row["images"]]
    text = "".join(one.text for one in reader.read(pixels)).upper().replace(" ", "")
    assert "BAPTIST" not in text and "20904" not in text
    assert "LYMPH" in text


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 9)).astype(np.uint8).repeat(8, 0).repeat(8, 1)


def prepare_cine(folder: Path, frames: list[np.ndarray], max_frames: int) -> tuple[Prepared, list[float]]:
    """One study of one file, and the mean levels of the frames that reached de-identification."""
    dataset = grey(np.stack(frames), "MONOCHROME2", StudyDescription="liver")
    (folder / "cine.dcm").write_bytes(to_bytes(dataset))
    worker = PrepareStudies(CONFIG.model_copy(update={"max_frames": max_frames}), b"key", seed=3)
    seen: list[float] = []
    clean = worker.deidentifier.redact_frames

    def spy(frames: Sequence[Frame], identifiers: tuple[str, ...]) -> tuple[RedactedFrame, ...]:
        seen.extend(float(frame.pixels.mean()) for frame in frames)
        return clean(frames, identifiers)

    worker.deidentifier.redact_frames = spy  # type: ignore[method-assign]
    (files,) = studies_of(open_store(str(folder)), "dicom")
    row, record = worker.prepare(files)
    rows = [] if row is None else [row]
    return (rows, list(record.rejections), Counter(record.counts)), seen


def test_blank_and_repeated_frames_take_no_place_of_good_ones(tmp_path: Path) -> None:
    blank, good, other = np.zeros((64, 72), np.uint8), picture(1), picture(2)
    (_, rejections, counts), seen = prepare_cine(tmp_path, [blank, blank, good, other], 2)
    assert seen == [good.mean(), other.mean()]
    assert [(one.step, one.reason) for one in rejections] == [
        ("frames", "blank"), ("frames", "blank"), ("studies", "no_report")
    ]  # fmt: skip
    assert (counts["frames_in"], counts["frames_out"]) == (4, 2)
    (_, rejections, _), seen = prepare_cine(tmp_path, [good, good, good, other], 2)
    assert seen == [good.mean(), other.mean()]
    assert Counter(one.reason for one in rejections)["duplicate"] == 2


def test_frames_beyond_the_limit_are_counted_and_the_kept_ones_are_spread(tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(5)]
    (_, rejections, counts), seen = prepare_cine(tmp_path, frames, 3)
    assert seen == [frames[place].mean() for place in (0, 2, 4)]
    cut = [one for one in rejections if one.reason == "beyond_max_frames"]
    assert [one.record.rpartition("/")[2] for one in cut] == ["1", "3"]
    assert (counts["frames_in"], counts["frames_out"]) == (5, 3)
    ledger_row("frames", 5, 3, rejections)


def test_quarantine_names_are_the_same_wherever_the_source_lies(tmp_path: Path) -> None:
    names = []
    for place in ("here", "far/away"):
        folder = tmp_path / place / "Okafor Grace"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("note")
        (files,) = studies_of(open_store(str(tmp_path / place)), "dicom")
        _, record = PrepareStudies(CONFIG, b"key", seed=3).prepare(files)
        (rejection,) = record.rejections
        names.append(rejection.record)
    assert names[0] == names[1] and re.fullmatch("[0-9a-f]{64}", names[0])
