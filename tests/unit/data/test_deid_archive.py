"""DICOM in, clean DICOM out, and the sheet to check it by: nobody is named, every count reconciles."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from test_deidentify_header import SECRETS, everything, with_secrets

from echoray.cli.deid_verbs import deid_dicom, deid_review
from echoray.config import load_run
from echoray.data.deidentify import archive, review
from echoray.data.deidentify.header import identifiers
from echoray.data.deidentify.text import known_pattern
from echoray.data.frames import png
from echoray.data.phantom import PhantomStudy, synthesize_study
from echoray.data.phantom.dicom import image_dataset, report_dataset, to_bytes
from echoray.data.sources.dicom import read_regions
from echoray.data.sources.index import ARCHIVE, SourceFile, list_source
from echoray.data.sources.samples import package_samples
from echoray.errors import ConfigError, UsageError
from echoray.storage import Store, open_store

KEY = b"a key of this test"
SAMPLES = ("gdcm-US-ALOKA-16.dcm", "US1_J2KI.dcm")  # palette colour; JPEG 2000, YBR


def silent(step: str, done: int, total: int | None) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def study() -> PhantomStudy:
    return synthesize_study(1, seed=11, language="en", width=320, height=240)


def cine(study: PhantomStudy) -> Dataset:
    """Two frames, the second one darker, with an icon and an overlay that show the banner again."""
    image = image_dataset(study, 0)
    first = study.frames[0].pixels
    image.NumberOfFrames, image.SOPInstanceUID = 2, "1.2.3.4"
    image.PixelData = np.stack([first, (first * 0.8).astype(np.uint8)]).tobytes()
    icon = Dataset()
    icon.Rows, icon.BitsAllocated, icon.PixelData = 1, 8, b"GRACE IN THE ICON."
    image.IconImageSequence = [icon]
    image.add_new(0x60003000, "OW", b"GRACE IN THE OVERLAY")
    return image


@pytest.fixture(scope="module")
def files(study: PhantomStudy, tmp_path_factory: pytest.TempPathFactory) -> list[SourceFile]:
    folder = tmp_path_factory.mktemp("archive")
    image = with_secrets(study)
    contents = {"OKAFOR GRACE/1.dcm": to_bytes(image), "OKAFOR GRACE/copy.dcm": to_bytes(image)}
    contents |= {"cine.dcm": to_bytes(cine(study)), "sr.dcm": to_bytes(report_dataset(study, [image]))}
    contents |= {"notes.txt": b"no DICOM", "cut.dcm": to_bytes(image)[: len(to_bytes(image)) // 2]}
    contents |= {one.name: one.read_bytes() for one in package_samples() if one.name in SAMPLES}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return list(list_source(open_store(str(folder)), ARCHIVE).files)


@pytest.fixture(scope="module")
def target(files: list[SourceFile], tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("clean")))
    archive.clean_archive(files, store, KEY, silent)
    return store


def outputs(target: Store) -> dict[str, bytes]:
    return {name: target.read_bytes(name) for name in target.list() if name.endswith(".dcm")}


def test_every_file_comes_out_or_is_quarantined_and_no_name_is_told(
    files: list[SourceFile], target: Store
) -> None:
    (ledger,) = json.loads(target.read_bytes("ledger.json"))
    want = {"duplicate_file": 1, "not_dicom": 1, "not_ultrasound": 1, "unreadable_pixels": 1}
    assert ledger["quarantined"] == want
    assert ledger["records_in"] == len(files) == 8 and ledger["records_out"] == len(outputs(target)) == 4
    rows = target.read_bytes("quarantine.csv").decode().splitlines()
    told = " ".join([*rows, *target.list()])
    assert len(rows) == 1 + 4 and "OKAFOR" not in told and "cine" not in told


def test_headers_name_nobody_declare_what_was_done_and_keep_the_regions(
    files: list[SourceFile], target: Store
) -> None:
    originals = [dcmread(io.BytesIO(one.read_bytes() or b""), force=True) for one in files]
    images = [one for one in originals if one.get("Modality") == "US" and "PixelData" in one]
    known = known_pattern({text for one in images for text in identifiers(one) if len(text) > 3})
    assert known is not None
    regions = {str(read_regions(one)) for one in images}
    for content in outputs(target).values():
        clean = dcmread(io.BytesIO(content))
        told = "\n".join(str(one.value) for one in clean.iterall() if one.VR not in ("OB", "OW", "SQ"))
        assert not known.search(told) and not [text for text in SECRETS if text in everything(clean)]
        assert not [one for one in clean.iterall() if one.tag.is_private]
        assert (clean.PatientIdentityRemoved, clean.BurnedInAnnotation) == ("YES", "NO")
        codes = [one.CodeValue for one in clean.DeidentificationMethodCodeSequence]
        assert codes == ["113100", "113101"]
        assert str(read_regions(clean)) in regions
        assert b"GRACE IN" not in content


def test_burned_in_text_is_gone_from_each_frame_and_the_scan_stays(
    study: PhantomStudy, target: Store
) -> None:
    (clean,) = (
        one
        for content in outputs(target).values()
        if (one := dcmread(io.BytesIO(content))).get("NumberOfFrames")
    )
    scan = study.frames[0].regions[0].box
    area = np.s_[scan.y0 : scan.y1, scan.x0 : scan.x1]
    first = study.frames[0].pixels
    for pixels, want in zip(clean.pixel_array, (first, (first * 0.8).astype(np.uint8)), strict=True):
        for box in study.truth.marks[0].banner_boxes:
            assert want[box.y0 : box.y1, box.x0 : box.x1].any()
            assert not pixels[box.y0 : box.y1, box.x0 : box.x1].any()
        assert (pixels[area] == want[area]).mean() > 0.99


def test_uids_stay_linked_by_the_key_alone(study: PhantomStudy, target: Store) -> None:
    found = [dcmread(io.BytesIO(content), stop_before_pixels=True) for content in outputs(target).values()]
    original = str(image_dataset(study, 0).StudyInstanceUID)
    uids = [str(one.StudyInstanceUID) for one in found]
    assert max(map(uids.count, uids)) >= 2 and original not in uids
    again = archive.anonymise(image_dataset(study, 0), KEY)
    assert again.StudyInstanceUID in uids
    assert archive.anonymise(image_dataset(study, 0), b"another").StudyInstanceUID not in uids


def test_a_second_run_makes_only_what_is_missing_and_the_same_bytes(
    files: list[SourceFile], target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outputs(target)
    ledger = target.read_bytes("ledger.json")
    lost = min(before, key=lambda name: len(before[name]))
    target.delete(lost)
    written = []
    write = Store.write_bytes

    def watched(store: Store, path: str, content: bytes, *, if_absent: bool = False) -> bool:
        written.append(path)
        return write(store, path, content, if_absent=if_absent)

    monkeypatch.setattr(Store, "write_bytes", watched)
    archive.clean_archive(files, target, KEY, silent)
    assert [name for name in written if name.endswith(".dcm")] == [lost]
    assert outputs(target) == before and target.read_bytes("ledger.json") == ledger
    with pytest.raises(UsageError, match="another key"):
        archive.clean_archive(files, target, b"another", silent)


def test_a_key_that_is_not_set_and_folders_within_one_another_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ECHORAY_DEID_KEY", raising=False)
    with pytest.raises(ConfigError, match="ECHORAY_DEID_KEY"):
        deid_dicom(str(tmp_path), str(tmp_path.parent / "clean"))
    with pytest.raises(UsageError, match="synthetic"):
        deid_dicom(str(tmp_path), str(tmp_path.parent / "clean"), "synthetic")
    monkeypatch.setenv("ECHORAY_DEID_KEY", "a key")
    with pytest.raises(UsageError, match="one another"):
        deid_dicom(str(tmp_path), str(tmp_path / "clean"))


def test_the_review_sheet_is_private_shows_both_sides_and_names_no_file(tmp_path: Path) -> None:
    run = load_run("tiny", [f"workspace={tmp_path / 'workspace'}"])
    out = tmp_path / "sheet"
    page = review.write_review(run, out, 2, silent)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    names = {one.name for one in out.iterdir()}
    pictures = {f"00{number}-{side}.png" for number in (1, 2) for side in ("before", "after")}
    assert names == {"review.html", *pictures}
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in out.iterdir())
    text = page.read_text()
    assert "shows patient data" in text and all(name in text for name in pictures)
    assert ".dcm" not in text and "removed: known" in text and "kept: setting" in text
    assert not (tmp_path / "workspace").exists()


def test_the_review_sheet_shows_tables_and_passes_over_what_cannot_be_read(
    study: PhantomStudy, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(png(study.frames[0].pixels))
    (tmp_path / "in" / "b" / "1.png").write_bytes(b"no picture")
    source = {"phantom": None, "package_samples": False, "image_report_uris": [str(tmp_path / "in")]}
    data = {"source": source, "deidentify": {"key_ref": "env:KEY"}}
    run = load_run("tiny").merged({"data": data, "workspace": str(tmp_path / "workspace")})
    text = review.write_review(run, tmp_path / "sheet", 9, silent).read_text()
    assert "image-report" in text and "1 frames" in text
    assert "1 records without a readable picture" in text


def test_the_review_sheet_goes_to_no_store_no_workspace_and_no_folder_in_use(tmp_path: Path) -> None:
    workspace = str(tmp_path / "workspace")
    with pytest.raises(UsageError, match="local folder"):
        deid_review("s3://bucket/sheet")
    with pytest.raises(UsageError, match="workspace"):
        deid_review(f"{workspace}/sheet", "tiny", None, workspace)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="in use"):
        deid_review(str(tmp_path), "tiny", None, workspace)
