"""Reading DICOM: every real encoding becomes RGB, every file is accounted for, nothing raises."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset

from echoray.data.deidentify.keys import keyed_hash
from echoray.data.phantom import PhantomStudy, synthesize_study
from echoray.data.phantom.dicom import image_dataset, report_dataset, to_bytes
from echoray.data.sources.dicom import key_frames, read_regions, read_report, read_study
from echoray.data.sources.index import StudyFiles, group_studies, list_source, read_header
from echoray.data.sources.pixels import to_rgb
from echoray.data.sources.samples import DEID_DATA, PYDICOM_DATA, package_samples
from echoray.storage import open_store
from echoray.types import Rejection, Study

KEY = b"key of the tests"


def shipped(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(str(path))


def read_folder(folder: Path, max_frames: int = 8) -> tuple[list[Study], list[Rejection]]:
    """The studies below ``folder`` and what became of all other files."""
    studies: list[Study] = []
    rejections: list[Rejection] = []
    for files in indexed(folder):
        study, rejected = read_study(files, key=KEY, language="en", max_frames=max_frames)
        studies += [study] if study is not None else []
        rejections += rejected
    return studies, rejections


def indexed(folder: Path) -> list[StudyFiles]:
    files = list_source(open_store(str(folder)), "dicom").files
    return group_studies(files, [read_header(file) for file in files])


@pytest.fixture(scope="module")
def study() -> PhantomStudy:
    return synthesize_study(3, seed=11, language="en", width=320, height=240)


def grey(pixels: np.ndarray, photometric: str, **values: object) -> Dataset:
    """A US image of one sample per pixel, (H, W) or (N, H, W), uint8 or uint16."""
    dataset = Dataset()
    dataset.Modality, dataset.StudyInstanceUID, dataset.PatientID = "US", "2.25.1", "P1"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", "2.25.2"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
        bits,
        bits,
        bits - 1,
        0,
    )
    dataset.PixelData = pixels.tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def test_every_package_sample_is_rgb_of_its_own_size_with_its_colours() -> None:
    shown, cines = {}, []
    for sample in package_samples():
        content = sample.read_bytes()
        assert len(content) == sample.size_bytes, sample.name
        dataset = pydicom.dcmread(io.BytesIO(content))
        chosen = key_frames(dataset, 3)
        pixels = to_rgb(dataset, chosen)
        assert pixels.dtype == np.uint8, sample.name
        assert pixels.shape == (len(chosen), dataset.Rows, dataset.Columns, 3), sample.name
        assert pixels.min() == 0 and pixels.max() > 200, sample.name
        shown[sample.name] = pixels[0].astype(int)
        if len(chosen) == 3:
            cines.append(sample.name)
            assert (pixels[0] != pixels[2]).any(), sample.name
    more = find_spec("deid_data") is not None
    assert len(shown) == len(PYDICOM_DATA) + more * len(DEID_DATA)
    assert sorted(cines) == more * ["GREYSCALE_CINE.dcm", "RGB_CINE.dcm", "ultrasound-multiframe.dcm"]
    raw = shown["US1_UNCR.dcm"]
    spread = raw.max(axis=-1) - raw.min(axis=-1)
    assert 0.02 < (spread > 100).mean() < 0.5  # the power Doppler is coloured, the tissue is grey
    assert np.array_equal(raw, shown["US1_J2KR.dcm"])  # YBR_RCT, lossless
    assert np.abs(shown["US1_UNCI.dcm"] - shown["US1_J2KI.dcm"]).mean() < 4  # YBR_ICT, lossy
    aloka = shown["gdcm-US-ALOKA-16.dcm"]
    assert (aloka[..., 1] - aloka[..., [0, 2]].max(axis=-1)).max() > 150  # the green marks of its palette
    echo = shown["JPGLosslessP14SV1_1s_1f_8b.dcm"]
    assert (echo[..., 0] == echo[..., 1]).all() and (echo[..., 1] == echo[..., 2]).all()


def test_uncompressed_ybr_is_the_same_picture_as_its_rgb_twin() -> None:
    rgb = to_rgb(pydicom.dcmread(shipped("SC_rgb.dcm")), [0]).astype(int)
    for name in ("SC_ybr_full_uncompressed.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        assert np.abs(to_rgb(pydicom.dcmread(shipped(name)), [0]) - rgb).mean() < 6, name


def test_key_frames_are_the_named_one_or_an_even_sample() -> None:
    coloured = pydicom.dcmread(shipped("examples_ybr_color.dcm"))  # RLE, 30 frames
    assert to_rgb(coloured, [3, 29]).shape == (2, 240, 320, 3)
    assert np.array_equal(to_rgb(coloured, range(30))[[3, 29]], to_rgb(coloured, [3, 29]))
    levels = np.arange(30, dtype=np.uint8)  # each frame is as bright as its number
    dataset = grey(np.broadcast_to(levels[:, None, None], (30, 8, 8)), "MONOCHROME2")

    def chosen(limit: int) -> list[int]:
        places = key_frames(dataset, limit)
        assert to_rgb(dataset, places)[:, 0, 0, 0].tolist() == places
        return places

    assert chosen(4) == [0, 10, 19, 29]
    assert chosen(1) == [0]
    assert chosen(100) == list(range(30))
    dataset.RepresentativeFrameNumber = 12  # counted from 1
    assert chosen(4) == [11]
    for missing in (31, 0, None):  # there is no such frame
        dataset.RepresentativeFrameNumber = missing
        assert chosen(2) == [0, 29]


def test_sixteen_bits_and_inverted_grey_keep_the_order_of_brightness() -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    picture = to_rgb(grey(ramp, "MONOCHROME2"), [0])
    assert picture.shape == (1, 64, 64, 3) and picture.dtype == np.uint8
    assert (picture.min(), picture.max()) == (0, 255)
    assert (np.diff(picture[0, ..., 0].ravel().astype(int)) >= 0).all()
    windowed = to_rgb(grey(ramp, "MONOCHROME2", WindowCenter=32768, WindowWidth=1000), [0])
    assert np.isin(windowed, (0, 255)).mean() > 0.97
    assert np.array_equal(to_rgb(grey(ramp, "MONOCHROME1"), [0]), 255 - picture)
    dark = np.full((3, 16, 16), 40, np.uint8)
    dark[:, :4] = 10
    inverted = to_rgb(grey(dark, "MONOCHROME1"), range(3))
    assert inverted.shape == (3, 16, 16, 3)
    assert (inverted[:, :4] == 245).all() and (inverted[:, 4:] == 215).all()


def test_a_phantom_study_comes_back_with_its_pixels_regions_report_and_pseudonyms(
    study: PhantomStudy, tmp_path: Path
) -> None:
    images = [image_dataset(study, number) for number in range(len(study.frames))]
    for number, image in enumerate(images):
        # File names against the order of the instances.
        (tmp_path / f"{9 - number}.dcm").write_bytes(to_bytes(image))
    (tmp_path / "a.dcm").write_bytes(to_bytes(report_dataset(study, images)))
    (found,), rejections = read_folder(tmp_path)
    assert not rejections
    assert len(found.frames) == len(study.frames) == 1
    for mine, theirs in zip(found.frames, study.frames, strict=True):
        assert np.array_equal(mine.pixels, theirs.pixels)
        assert [(one.box, one.data_type) for one in mine.regions] == [
            (one.box, one.data_type) for one in theirs.regions
        ]
        assert mine.regions[0].mm_per_px == pytest.approx(theirs.regions[0].mm_per_px)
    assert found.report == study.truth.report and found.system == study.truth.system
    person = study.truth.patient.patient
    assert found.patient_key == keyed_hash(KEY, person.patient_id) != keyed_hash(b"other", person.patient_id)
    assert found.study_hash == keyed_hash(KEY, images[0].StudyInstanceUID)
    assert set(study.truth.patient.strings()) <= set(found.identifiers)


def test_the_frames_of_several_files_come_in_instance_order(tmp_path: Path) -> None:
    for instance, level in ((10, 200), (2, 100), (1, 50)):
        values = np.full((16, 16), level, np.uint8)
        values[:4] = 0
        dataset = grey(values, "MONOCHROME2", SeriesNumber=1, InstanceNumber=instance)
        (tmp_path / f"{instance}.dcm").write_bytes(to_bytes(dataset))
    (found,), _ = read_folder(tmp_path)
    assert [int(frame.pixels.max()) for frame in found.frames] == [50, 100, 200]


def test_of_long_cines_only_a_small_multiple_of_what_is_kept_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = np.arange(200, dtype=np.uint8)
    for number in range(2):
        cine = np.broadcast_to(levels[:, None, None], (200, 8, 8)) // (number + 1)
        dataset = grey(cine, "MONOCHROME2", InstanceNumber=number)
        (tmp_path / f"{number}.dcm").write_bytes(to_bytes(dataset))
    decoded: list[int] = []
    original = pydicom.pixels.iter_pixels

    def spy(source: Dataset, indices: list[int]) -> Iterator[np.ndarray]:
        decoded.extend(indices)
        return original(source, indices=indices)

    monkeypatch.setattr(pydicom.pixels, "iter_pixels", spy)
    (found,), _ = read_folder(tmp_path, max_frames=2)
    assert decoded == [0, 100, 199, 0, 100, 199]  # three for each that is kept, shared out among the files
    assert [int(frame.pixels.max()) for frame in found.frames] == [0, 100, 199, 0, 50, 99]


def test_files_without_a_study_uid_are_not_taken_for_one_study(tmp_path: Path) -> None:
    for number in range(2):
        dataset = grey(np.full((8, 8), number, np.uint8), "MONOCHROME2", PatientID=f"P{number}")
        dataset.StudyInstanceUID = ""
        (tmp_path / f"{number}.dcm").write_bytes(to_bytes(dataset))
    studies, _ = read_folder(tmp_path)
    assert len({one.patient_key for one in studies}) == len({one.study_hash for one in studies}) == 2


def test_an_sr_report_is_found_in_nested_containers(study: PhantomStudy) -> None:
    document = report_dataset(study, [image_dataset(study, 0)])
    section = Dataset()
    section.ValueType, section.ContentSequence = "CONTAINER", [document.ContentSequence[1]]
    outer = Dataset()
    outer.ValueType, outer.ContentSequence = "CONTAINER", [section]
    document.ContentSequence = [outer, document.ContentSequence[0]]
    assert read_report(document) == study.truth.report
    document.ContentSequence = []
    assert read_report(document) is None


def test_regions_are_cut_to_the_frame_and_one_without_area_is_refused(study: PhantomStudy) -> None:
    image = image_dataset(study, 0)
    item = image.SequenceOfUltrasoundRegions[0]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 4000, 4000
    box = read_regions(image)[0].box
    assert (box.x1, box.y1) == (320, 240)
    item.RegionLocationMinX0 = 320
    with pytest.raises(ValueError, match="no area"):
        read_regions(image)


DANGLING = b"a link to nowhere"


def bad_files(study: PhantomStudy) -> dict[str, tuple[bytes, str]]:
    """Content and expected reason by name; the names hold the patient's."""
    name = study.truth.patient.patient.name
    good = to_bytes(image_dataset(study, 0))
    image = image_dataset(study, 0)
    del image.SequenceOfUltrasoundRegions[0].RegionDataType
    other = image_dataset(study, 0)
    other.Modality = "CT"
    bare = image_dataset(study, 0)
    del bare.PixelData
    return {
        f"{name}/notes.txt": (f"{name} was here".encode(), "not_dicom"),
        f"{name}/empty.dcm": (b"", "not_dicom"),
        f"{name}/noise.dcm": (b"\0" * 128 + b"DICM" + bytes(range(256)) * 16, ""),
        f"{name}/cut.dcm": (good[: len(good) // 3], "unreadable_pixels"),
        f"{name}/bare.dcm": (to_bytes(bare), "unreadable_pixels"),
        f"{name}/ct.dcm": (to_bytes(other), "not_ultrasound"),
        f"{name}/region.dcm": (to_bytes(image), "malformed"),
        f"{name}/real-ct.dcm": (shipped("CT_small.dcm").read_bytes(), "not_ultrasound"),
        f"{name}/gone.dcm": (DANGLING, "unreadable_file"),
    }


def test_bad_files_become_rejections_that_name_neither_path_nor_patient(
    study: PhantomStudy, tmp_path: Path
) -> None:
    files = bad_files(study)
    for name, (content, _) in files.items():
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if content is DANGLING:
            target.symlink_to(tmp_path / "nowhere")
        else:
            target.write_bytes(content)
    studies, rejections = read_folder(tmp_path)
    assert not studies
    reasons = {one.record: one.reason for one in rejections}
    assert len(reasons) == len(rejections) == len(files)
    for name, (_, reason) in files.items():
        got = reasons[keyed_hash(KEY, f"dicom-0/{name}")]
        assert got == reason or (not reason and got in ("not_dicom", "not_ultrasound")), name
    told = json.dumps([asdict(one) for one in rejections])
    for word in (
        *study.truth.patient.strings(),
        *study.truth.patient.patient.name.split(),
        "dcm",
        tmp_path.name,
    ):
        assert word not in told


def test_nothing_that_is_read_comes_up_in_logs_or_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    dataset = grey(np.eye(8, dtype=np.uint8), "MONOCHROME2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.StudyInstanceUID = "Okafor^Grace"  # names where UIDs belong
        dataset.PatientBirthDate = "about 1950"
        content = to_bytes(dataset)
    (tmp_path / "0.dcm").write_bytes(content)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        studies, _ = read_folder(tmp_path)
    assert len(studies) == 1
    assert not caplog.records and not recwarn.list


def test_files_damaged_anywhere_never_raise_and_are_all_accounted_for(
    study: PhantomStudy, tmp_path: Path
) -> None:
    image = image_dataset(study, 0)
    image.Rows, image.Columns = 16, 16
    image.PixelData = image.PixelData[: 16 * 16 * 3]
    sound = [
        to_bytes(image),
        to_bytes(report_dataset(study, [image])),
        shipped("test-SR.dcm").read_bytes(),
        shipped("SC_rgb_small_odd_jpeg.dcm").read_bytes().replace(b"OT", b"US", 1),
    ]
    rng = np.random.default_rng(5)
    count = 0
    for content in sound:
        for _ in range(60):
            damaged = bytearray(
                content[: int(rng.integers(len(content))) or 1] if rng.random() < 0.3 else content
            )
            for place in rng.integers(
                132 if len(damaged) > 132 else 0, len(damaged), int(rng.integers(1, 6))
            ):
                damaged[place] = int(rng.integers(256))
            (tmp_path / f"{count:03d}.dcm").write_bytes(bytes(damaged))
            count += 1
    outcomes = {"study": 0, "rejection": 0}
    files = list_source(open_store(str(tmp_path)), "dicom").files
    for file in files:
        (group,) = group_studies([file], [read_header(file)])  # alone: most still have one UID
        study, rejections = read_study(group, key=KEY, language="en", max_frames=8)
        assert (study is not None) + len(rejections) == 1
        outcomes["study"] += study is not None
        outcomes["rejection"] += len(rejections)
    assert min(outcomes.values()) > 30 and sum(outcomes.values()) == count == 240
