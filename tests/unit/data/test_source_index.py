"""Studies over whole sources: however an archive is laid out, a study is one and a file is counted once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from echoray.config import DataConfig
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.ledger import ledger_row
from echoray.data.phantom import synthesize_study
from echoray.data.phantom.dicom import image_dataset, report_dataset, to_bytes
from echoray.data.prepare import STEPS, PrepareStudies
from echoray.data.sources.index import (
    HEADER_BYTES,
    PACKAGE,
    Header,
    SourceFile,
    StudyFiles,
    group_studies,
    list_source,
    read_header,
)
from echoray.errors import InputDataError, StorageError
from echoray.storage import Store, open_store

KEY = b"key of the tests"
CONFIG = DataConfig.model_validate({"deidentify": {"pixels": False}, "image_size_px": 56, "max_frames": 2})
UIDS = [generate_uid(entropy_srcs=[str(number)]) for number in range(3)]


@pytest.fixture(scope="module")
def contents() -> list[tuple[bytes, bytes]]:
    """Image and report of three studies."""
    made = []
    for number, uid in enumerate(UIDS):
        study = synthesize_study(number, seed=11, language="en", width=320, height=240)
        image = image_dataset(study, 0)
        report = report_dataset(study, [image])
        image.StudyInstanceUID = report.StudyInstanceUID = uid
        made.append((to_bytes(image), to_bytes(report)))
    return made


def write(root: Path, files: dict[str, bytes]) -> Store:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return open_store(str(root))


def indexed(*stores: Store, source: str = "dicom") -> list[StudyFiles]:
    listed = [list_source(store, source, number).files for number, store in enumerate(stores)]
    files = [file for one in listed for file in one]
    return group_studies(files, [read_header(file) for file in files])


def prepared(studies: Sequence[StudyFiles]) -> tuple[list[str], dict[str, int]]:
    """Study hashes of the rows, and how many records each reason took, after the ledger reconciled."""
    worker = PrepareStudies(CONFIG, KEY, seed=0)
    hashes, reasons = [], dict[str, int]()
    totals: dict[str, int] = dict.fromkeys([f"{step}_{end}" for step in STEPS for end in ("in", "out")], 0)
    found = []
    for study in studies:
        made, record = worker.prepare(study)
        hashes += [] if made is None else [str(made["study_hash"])]
        found += record.rejections
        totals = {name: number + record.counts.get(name, 0) for name, number in totals.items()}
    for step in STEPS:
        row = ledger_row(step, totals[f"{step}_in"], totals[f"{step}_out"], found)
        reasons |= {f"{step}/{why}": number for why, number in row.quarantined.items()}
    assert totals["read_in"] == sum(len(one.files) for one in studies)
    return hashes, reasons


def layouts(contents: list[tuple[bytes, bytes]], layout: str) -> dict[str, bytes]:
    files = {}
    for number, (image, report) in enumerate(contents):
        names = {
            "folder per study": (f"{number}/image.dcm", f"{number}/report.dcm"),
            "folder per series": (f"{number}/1/0.dcm", f"{number}/2/0.dcm"),
            "folder per kind": (f"images/{number}.dcm", f"reports/{9 - number}.dcm"),
            "all in one": (f"{number}-a.dcm", f"{number}-b.dcm"),
        }[layout]
        files |= dict(zip(names, (image, report), strict=True))
    return files


@pytest.mark.parametrize("layout", ["folder per study", "folder per series", "folder per kind", "all in one"])
def test_a_study_is_the_same_in_every_layout(
    layout: str, contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    hashes, reasons = prepared(indexed(write(tmp_path, layouts(contents, layout))))
    assert hashes == [keyed_hash(KEY, uid) for uid in UIDS]
    assert not reasons


def test_a_study_that_lies_in_two_places_gives_one_row(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    files = layouts(contents, "folder per series")
    store = write(tmp_path, files)
    shutil.copytree(tmp_path / "0", tmp_path / "again" / "0")
    hashes, reasons = prepared(indexed(store))
    assert sorted(hashes) == sorted(keyed_hash(KEY, uid) for uid in UIDS)
    assert reasons == {"read/duplicate_file": 2}


def test_images_and_reports_from_two_archives_meet(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    images = write(tmp_path / "pacs", {f"{n}.dcm": image for n, (image, _) in enumerate(contents)})
    reports = write(tmp_path / "ris", {f"{n}.dcm": report for n, (_, report) in enumerate(contents)})
    studies = indexed(images, reports)
    assert [[(file.number, file.path) for file in one.files] for one in studies] == [
        [(0, f"{n}.dcm"), (1, f"{n}.dcm")] for n in range(3)
    ]
    names = {keyed_hash(KEY, file.name) for one in studies for file in one.files}
    assert len(names) == 6  # the same paths, and yet other files
    assert prepared(studies) == ([keyed_hash(KEY, uid) for uid in UIDS], {})


def test_unreadable_files_are_rejected_once_and_the_run_goes_on(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    store = write(tmp_path, {**layouts(contents, "folder per study"), "0/empty.dcm": b"", "0/a.txt": b"note"})
    (tmp_path / "Okafor Grace").symlink_to(tmp_path / "gone")
    (tmp_path / "0" / "loop.dcm").symlink_to(tmp_path / "0" / "loop.dcm")
    hashes, reasons = prepared(indexed(store))
    assert sorted(hashes) == sorted(keyed_hash(KEY, uid) for uid in UIDS)
    assert reasons == {"read/not_dicom": 2, "read/unreadable_file": 2}


def test_a_store_that_does_not_answer_stops_the_run_and_names_no_file(
    contents: list[tuple[bytes, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = indexed(write(tmp_path, {"Okafor Grace/0.dcm": contents[0][0]}))

    def down(self: Store, path: str, end: int | None = None) -> bytes:
        try:
            raise ConnectionError("no route")
        except ConnectionError as error:
            raise StorageError(f"{self.uri(path)}: {error}", hint="") from None

    file = SourceFile(Store("s3://bucket/archive"), study.files[0].path, "dicom", 1)
    monkeypatch.setattr(Store, "read_bytes", down)
    with pytest.raises(StorageError, match=r"a file of source dicom-1 could not be read \(Conn") as raised:
        file.read_bytes()
    assert "Okafor" not in str(raised.value) and "0.dcm" not in str(raised.value)
    assert study.files[0].read_bytes() is None  # on a disk it is this file alone


def test_a_file_that_changed_after_the_index_is_left_out(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    store = write(tmp_path, layouts(contents, "folder per study"))
    studies = indexed(store)
    write(tmp_path, {"0/image.dcm": contents[1][0]})  # else study 1 would be made twice
    hashes, reasons = prepared(studies)
    assert hashes == [keyed_hash(KEY, uid) for uid in UIDS[1:]]
    assert reasons == {"read/header_mismatch": 1, "studies/no_image": 1}


def test_two_patients_under_one_study_uid_are_not_one_study(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    study = synthesize_study(0, seed=11, language="en", width=320, height=240)
    images = [image_dataset(study, 0), image_dataset(study, 0)]
    for image, patient in zip(images, ("A1", "B2"), strict=True):
        image.PatientID = patient
    store = write(tmp_path, {f"{n}.dcm": to_bytes(image) for n, image in enumerate(images)})
    assert prepared(indexed(store)) == ([], {"read/patient_conflict": 2})
    images[1].PatientID = " a1"  # written in another way, or missing, it is no other patient
    images[0].InstanceNumber = 7
    write(tmp_path, {"1.dcm": to_bytes(images[1])})
    assert prepared(indexed(store))[1] == {"frames/duplicate": 1, "studies/no_report": 1}


def test_the_uid_is_found_behind_a_long_header(contents: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    study = synthesize_study(0, seed=11, language="en", width=320, height=240)
    image = image_dataset(study, 0)
    image.StudyInstanceUID = UIDS[0]
    image.add_new(0x00090010, "LO", "MAKER")
    image.add_new(0x00091001, "OB", bytes(3 * HEADER_BYTES))
    long, short = to_bytes(image), contents[0][0]
    write(tmp_path, {"long.dcm": long, "short.dcm": short, "cut.dcm": long[: 2 * HEADER_BYTES]})
    files = {file.path: file for file in list_source(open_store(str(tmp_path)), "dicom").files}
    assert read_header(files["long.dcm"]) == read_header(files["short.dcm"]) == Header(UIDS[0], True)
    cut = read_header(files["cut.dcm"])
    assert cut is None or not cut.study_uid


def test_of_a_long_file_only_the_header_is_read(
    contents: list[tuple[bytes, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(tmp_path, {"0.dcm": contents[0][0], "big.zip": b"PK" + bytes(4 * HEADER_BYTES)})
    assert min(store.sizes().values()) > 3 * HEADER_BYTES
    read: list[int] = []
    original = Store.read_bytes

    def spy(self: Store, path: str, end: int | None = None) -> bytes:
        content = original(self, path, end)
        read.append(len(content))
        return content

    monkeypatch.setattr(Store, "read_bytes", spy)
    assert [read_header(file) for file in list_source(store, "dicom").files] == [Header(UIDS[0], True), None]
    assert read == [HEADER_BYTES, HEADER_BYTES]


def test_package_samples_stay_apart_though_they_share_a_uid(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    image, report = contents[0]
    store = write(
        tmp_path, {f"{PACKAGE}/a.dcm": image, f"{PACKAGE}/b.dcm": image, "s/i": image, "s/r": report}
    )
    studies = indexed(store, source="corpus")
    assert [[file.path for file in one.files] for one in studies] == [
        [f"{PACKAGE}/a.dcm"], [f"{PACKAGE}/b.dcm"], ["s/i", "s/r"]
    ]  # fmt: skip
    assert len({one.identity for one in studies}) == 3
    assert prepared(studies) == ([keyed_hash(KEY, UIDS[0])], {"studies/no_report": 2})


def test_files_without_a_study_uid_stand_alone(tmp_path: Path) -> None:
    study = synthesize_study(0, seed=11, language="en", width=320, height=240)
    image: Dataset = image_dataset(study, 0)
    image.StudyInstanceUID = ""
    studies = indexed(write(tmp_path, {f"{n}.dcm": to_bytes(image) for n in range(2)}))
    assert len(studies) == len({one.identity for one in studies}) == 2
    assert prepared(studies)[1] == {"studies/no_report": 2}


def test_a_listing_knows_growth_and_sizes_but_not_the_place(tmp_path: Path) -> None:
    files = {"b/2.dcm": b"x", "a/1.dcm": b"x", "a/0.dcm": b"xy", "truth.jsonl": b"{}"}
    one, two = (list_source(write(tmp_path / name, files), "dicom") for name in ("here", "there"))
    assert [file.path for file in one.files] == ["a/0.dcm", "a/1.dcm", "b/2.dcm"]
    assert one.digest == two.digest
    assert {file.name for file in one.files} == {file.name for file in two.files}
    seen = {one.digest}
    for change in ({"b/3.dcm": b"x"}, {"a/0.dcm": b"xyz"}):
        write(tmp_path / "here", change)
        seen.add(list_source(open_store(str(tmp_path / "here")), "dicom").digest)
    (tmp_path / "here" / "b" / "3.dcm").rename(tmp_path / "here" / "b" / "4.dcm")
    seen.add(list_source(open_store(str(tmp_path / "here")), "dicom").digest)
    assert len(seen) == 4
    (tmp_path / "none").mkdir()
    with pytest.raises(InputDataError, match="expected DICOM files"):
        list_source(open_store(str(tmp_path / "none")), "dicom")


def test_the_index_counts_images_so_that_decoded_frames_can_be_shared_out(
    contents: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    (study,) = indexed(write(tmp_path, {"i": contents[0][0], "r": contents[0][1], "j": contents[0][0]}))
    assert study.num_images == 2 and len(study.files) == 3
    rng = np.random.default_rng(0)
    order = rng.permutation(3)
    files = [study.files[place] for place in order]
    assert {one.identity for one in group_studies(files, [read_header(file) for file in files])} == {UIDS[0]}
