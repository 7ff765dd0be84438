"""DICOM studies below a store's prefix: ultrasound frames, scan regions, the report of a Basic Text SR."""

from __future__ import annotations

import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from echoray.data.anatomy import named_system
from echoray.data.deidentify.header import identifiers
from echoray.data.deidentify.keys import keyed_hash
from echoray.errors import InputDataError
from echoray.storage import Store
from echoray.types import Box, Frame, Language, Region, Rejection, Report, Study

if TYPE_CHECKING:
    from pydicom import Dataset

CENTIMETRES = 3  # Physical Units X Direction (0018,6024)
FINDINGS, IMPRESSION = "121070", "121073"  # DCM codes of the SR's text items
ULTRASOUND = "US"
# Ultrasound files of pydicom-data, with burned-in text, palettes, JPEG and JPEG 2000.
PACKAGE_SAMPLES = (
    "US1_UNCR.dcm", "US1_UNCI.dcm", "US1_J2KR.dcm", "US1_J2KI.dcm", "gdcm-US-ALOKA-16.dcm",
    "JPGLosslessP14SV1_1s_1f_8b.dcm", "OBXXXX1A.dcm",
)  # fmt: skip


@dataclass(frozen=True)
class StudyFiles:
    """The files of one folder, which usually is one study; ``source`` says where they came from."""

    store: Store
    paths: tuple[str, ...]
    source: str


def list_studies(store: Store, source: str) -> list[StudyFiles]:
    """Group the files below a store by folder, in order of their names.

    Raises InputDataError where there is no such folder or it holds no file.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for path in store.list():
        if path.rpartition("/")[2] not in {"truth.jsonl", "manifest.json"}:
            folders[path.rpartition("/")[0]].append(path)
    if not folders:
        raise InputDataError(
            f"{store.root}: missing or empty, expected DICOM files", hint="check data.source.dicom_uris"
        )
    return [StudyFiles(store, tuple(paths), source) for _, paths in sorted(folders.items())]


def package_samples() -> list[Path]:
    """The ultrasound files that pydicom-data ships; nothing is downloaded."""
    from pydicom.data import get_testdata_file

    found = [get_testdata_file(name, download=False) for name in PACKAGE_SAMPLES]
    return [Path(str(path)) for path in found if path is not None]


@dataclass(frozen=True)
class _Instance:
    """What is used of one file; ``uid`` and ``patient`` are the header's own and are never passed on."""

    uid: str
    patient: str
    order: tuple[int, int]  # series and instance number
    words: str  # the header fields that name the examined organ
    frames: tuple[Frame, ...]
    report: Report | None
    identifiers: tuple[str, ...]


def read_studies(
    files: StudyFiles, *, key: bytes, language: Language, max_frames: int
) -> tuple[list[Study], list[Rejection]]:
    """Decode the files and group them by Study Instance UID (0020,000D).

    Every file ends in a study or in a Rejection, which names it by a keyed hash of its path.
    """
    groups: dict[str, list[_Instance]] = defaultdict(list)
    rejections = []
    for path in files.paths:
        name = keyed_hash(key, files.store.uri(path))
        with _without_warnings():
            found = _read_file(files.store.read_bytes(path), name, max_frames)
        if isinstance(found, str):
            rejections.append(Rejection(name, "read", found))
        else:
            groups[found.uid].append(found)
    studies = [
        _study(uid, group, files.source, key, language, max_frames) for uid, group in sorted(groups.items())
    ]
    return studies, rejections


@contextmanager
def _without_warnings() -> Iterator[None]:
    """pydicom's warnings quote the values they are about, which no log may hold."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_file(content: bytes, name: str, max_frames: int) -> _Instance | str:
    """The file's instance, or the reason code of its rejection.

    pydicom parses a value when it is first asked for, and each decoder has errors of its own: a damaged file
    may raise anything anywhere, and what was raised may quote the file.
    """
    from pydicom import dcmread

    try:
        dataset = dcmread(io.BytesIO(content))
        modality = dataset.get("Modality")
    except Exception:
        return "not_dicom"
    if modality not in (ULTRASOUND, "SR"):
        return "not_ultrasound"
    try:
        pixels = to_rgb(dataset) if modality == ULTRASOUND else None
    except Exception:
        return "unreadable_pixels"
    try:
        return _instance(dataset, pixels, name, max_frames)
    except Exception:
        return "malformed"


def _instance(
    dataset: Dataset, pixels_NHW3: NDArray[np.uint8] | None, name: str, max_frames: int
) -> _Instance:
    uid = str(dataset.get("StudyInstanceUID") or name)
    return _Instance(
        uid=uid,
        patient=str(dataset.get("PatientID") or dataset.get("PatientName") or uid),
        order=(int(dataset.get("SeriesNumber") or 0), int(dataset.get("InstanceNumber") or 0)),
        words=" ".join(str(dataset.get(tag, "")) for tag in ("BodyPartExamined", "StudyDescription")),
        frames=() if pixels_NHW3 is None else key_frames(dataset, pixels_NHW3, max_frames),
        report=read_report(dataset),
        identifiers=identifiers(dataset),
    )


def _study(
    uid: str, group: Sequence[_Instance], source: str, key: bytes, language: Language, max_frames: int
) -> Study:
    images = sorted((one for one in group if one.frames), key=lambda one: one.order)
    report = next((one.report for one in group if one.report is not None), None)
    first = images[0] if images else group[0]
    return Study(
        study_hash=keyed_hash(key, uid),
        patient_key=keyed_hash(key, first.patient),
        system=named_system(first.words) or (named_system(report.text) if report else None),
        language=language,
        frames=tuple(frame for one in images for frame in one.frames)[:max_frames],
        report=report,
        source=source,
        identifiers=tuple(dict.fromkeys(value for one in group for value in one.identifiers)),
    )


def key_frames(dataset: Dataset, pixels_NHW3: NDArray[np.uint8], max_frames: int) -> tuple[Frame, ...]:
    """The Representative Frame (0028,6010) if named, else an even sample of the N frames."""
    regions = read_regions(dataset)
    count = len(pixels_NHW3)
    named = dataset.get("RepresentativeFrameNumber")
    if named and 1 <= int(named) <= count:
        chosen = [int(named) - 1]
    else:
        chosen = sorted({round(index) for index in np.linspace(0, count - 1, min(count, max_frames))})
    return tuple(Frame(np.ascontiguousarray(pixels_NHW3[index]), regions) for index in chosen)


def to_rgb(dataset: Dataset) -> NDArray[np.uint8]:
    """Pixels as (frames, H, W, 3) uint8: palettes applied, YBR converted, 16 bit windowed."""
    from pydicom.pixels import apply_color_lut, apply_voi_lut, pixel_array

    pixels: Any = pixel_array(dataset)  # three samples come as RGB, whatever they were stored as
    colours = str(dataset.PhotometricInterpretation)
    if colours == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    elif dataset.SamplesPerPixel == 1:
        pixels = apply_voi_lut(pixels, dataset)
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    if colours == "MONOCHROME1":
        pixels = 255 - pixels
    if pixels.ndim < 3 or pixels.shape[-1] != 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return pixels if pixels.ndim == 4 else pixels[None]


def read_regions(dataset: Dataset) -> tuple[Region, ...]:
    """The Sequence of Ultrasound Regions (0018,6011), cut to the frame; bounds in the tag are inclusive.

    Raises ValueError for a region without area: what it was to bound is unknown.
    """
    found = []
    for item in dataset.get("SequenceOfUltrasoundRegions") or ():
        box = Box(
            int(item.RegionLocationMinX0),
            int(item.RegionLocationMinY0),
            min(int(item.RegionLocationMaxX1) + 1, int(dataset.Columns)),
            min(int(item.RegionLocationMaxY1) + 1, int(dataset.Rows)),
        )
        if box.x0 >= box.x1 or box.y0 >= box.y1:
            raise ValueError("a region of the frame has no area")
        in_cm = item.get("PhysicalUnitsXDirection") == CENTIMETRES and item.get("PhysicalDeltaX")
        mm_per_px = 10 * abs(float(item.PhysicalDeltaX)) if in_cm else None  # cm/px, (0018,602C)
        found.append(Region(box, int(item.RegionDataType), int(item.RegionSpatialFormat), mm_per_px))
    return tuple(found)


def read_report(dataset: Dataset) -> Report | None:
    """Findings and impression of a Basic Text SR, or None; nested containers are searched."""
    if dataset.get("Modality") != "SR":
        return None
    texts: dict[str, list[str]] = defaultdict(list)
    todo = list(dataset.get("ContentSequence") or ())
    while todo:
        item = todo.pop(0)
        todo += list(item.get("ContentSequence") or ())
        if item.get("ValueType") == "TEXT" and item.get("ConceptNameCodeSequence"):
            texts[str(item.ConceptNameCodeSequence[0].CodeValue)].append(str(item.TextValue).strip())
    findings, impression = (" ".join(texts[code]) for code in (FINDINGS, IMPRESSION))
    return Report(findings, impression) if findings or impression else None
