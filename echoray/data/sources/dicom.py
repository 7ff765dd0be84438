"""DICOM studies below a store's prefix: ultrasound frames, scan regions, the report of a Basic Text SR."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
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


def read_studies(
    files: StudyFiles, *, key: bytes, language: Language, max_frames: int
) -> tuple[list[Study], list[Rejection]]:
    """Decode the files and group them by Study Instance UID (0020,000D).

    Every file ends in a study or in a Rejection, which names it by a keyed hash of its path.
    """
    groups: dict[str, list[Dataset]] = defaultdict(list)
    rejections = []
    for path in files.paths:
        name = keyed_hash(key, files.store.uri(path))
        dataset = _parse(files.store.read_bytes(path))
        if dataset is None:
            rejections.append(Rejection(name, "read", "not_dicom"))
        elif dataset.get("Modality") not in (ULTRASOUND, "SR"):
            rejections.append(Rejection(name, "read", "not_ultrasound"))
        elif dataset.get("Modality") == ULTRASOUND and not _decodes(dataset):
            rejections.append(Rejection(name, "read", "unreadable_pixels"))
        else:
            groups[str(dataset.get("StudyInstanceUID", name))].append(dataset)
    studies = [
        _study(uid, group, files.source, key, language, max_frames) for uid, group in sorted(groups.items())
    ]
    return studies, rejections


def _parse(content: bytes) -> Dataset | None:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(io.BytesIO(content))
    except (InvalidDicomError, EOFError, OSError, ValueError, KeyError, TypeError):
        return None


def _decodes(dataset: Dataset) -> bool:
    try:
        return dataset.pixel_array.size > 0
    except Exception:  # each decoder has errors of its own, and a damaged file may raise any
        return False


def _study(
    uid: str, datasets: Sequence[Dataset], source: str, key: bytes, language: Language, max_frames: int
) -> Study:
    images = sorted((one for one in datasets if one.Modality == ULTRASOUND), key=_instance)
    frames = tuple(frame for image in images for frame in read_frames(image, max_frames))[:max_frames]
    report = next((found for one in datasets if (found := read_report(one)) is not None), None)
    first = images[0] if images else datasets[0]
    patient = str(first.get("PatientID") or first.get("PatientName") or uid)
    header = " ".join(str(first.get(tag, "")) for tag in ("BodyPartExamined", "StudyDescription"))
    system = named_system(header) or (named_system(report.text) if report else None)
    known = dict.fromkeys(value for one in datasets for value in identifiers(one))
    return Study(
        study_hash=keyed_hash(key, uid),
        patient_key=keyed_hash(key, patient),
        system=system,
        language=language,
        frames=frames,
        report=report,
        source=source,
        identifiers=tuple(known),
    )


def _instance(dataset: Dataset) -> tuple[int, int]:
    return int(dataset.get("SeriesNumber") or 0), int(dataset.get("InstanceNumber") or 0)


def read_frames(dataset: Dataset, max_frames: int) -> Iterator[Frame]:
    """Yield key frames as RGB: the Representative Frame (0028,6010) if named, else an even sample."""
    pixels = to_rgb(dataset)
    regions = read_regions(dataset)
    count = len(pixels)
    named = dataset.get("RepresentativeFrameNumber")
    if named and 1 <= int(named) <= count:
        chosen = [int(named) - 1]
    else:
        chosen = sorted({round(index) for index in np.linspace(0, count - 1, min(count, max_frames))})
    for index in chosen:
        yield Frame(np.ascontiguousarray(pixels[index]), regions)


def to_rgb(dataset: Dataset) -> NDArray[np.uint8]:
    """Pixels as (frames, H, W, 3) uint8: palettes applied, YBR converted, 16 bit windowed."""
    from pydicom.pixels import apply_color_lut, apply_voi_lut, convert_color_space

    pixels: Any = dataset.pixel_array
    colours = str(dataset.PhotometricInterpretation)
    if colours == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    elif colours.startswith("YBR") and colours not in ("YBR_RCT", "YBR_ICT") and not _already_rgb(dataset):
        pixels = convert_color_space(pixels, colours, "RGB")
    elif dataset.SamplesPerPixel == 1:
        pixels = apply_voi_lut(pixels, dataset)
        if colours == "MONOCHROME1":
            pixels = pixels.max() - pixels
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    if pixels.ndim < 3 or pixels.shape[-1] != 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return pixels if pixels.ndim == 4 else pixels[None]


def _already_rgb(dataset: Dataset) -> bool:
    # pydicom's JPEG and JPEG 2000 decoders already give RGB.
    return bool(dataset.file_meta.TransferSyntaxUID.is_compressed)


def read_regions(dataset: Dataset) -> tuple[Region, ...]:
    """The Sequence of Ultrasound Regions (0018,6011); bounds in the tag are inclusive."""
    found = []
    for item in dataset.get("SequenceOfUltrasoundRegions") or ():
        box = Box(
            int(item.RegionLocationMinX0),
            int(item.RegionLocationMinY0),
            int(item.RegionLocationMaxX1) + 1,
            int(item.RegionLocationMaxY1) + 1,
        )
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
