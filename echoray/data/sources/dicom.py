"""The files of a DICOM study: ultrasound frames, scan regions, the report of a Basic Text SR."""

from __future__ import annotations

import datetime
import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echoray.data.anatomy import named_system
from echoray.data.deidentify.header import identifiers, study_date
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.sources.index import ULTRASOUND, StudyFiles, study_uid
from echoray.data.sources.pixels import to_rgb
from echoray.data.sources.quiet import without_warnings
from echoray.types import Box, Frame, Language, Region, Rejection, Report, Study

if TYPE_CHECKING:
    from pydicom import Dataset

CENTIMETRES = 3  # Physical Units X Direction (0018,6024)
FINDINGS, IMPRESSION = "121070", "121073"  # DCM codes of the SR's text items
# Frames decoded for each one that is kept, so that blank and repeated ones cost a study none of its places.
SPARE = 3


@dataclass(frozen=True)
class _Instance:
    """What is used of one file; the patient is the header's own and is never passed on."""

    name: str  # keyed hash
    patient_id: str
    patient_name: str
    order: tuple[int, int]  # series and instance number
    words: str  # the header fields that name the examined organ
    frames: tuple[Frame, ...]
    report: Report | None
    identifiers: tuple[str, ...]
    date: datetime.date | None


def read_study(
    files: StudyFiles, *, key: bytes, language: Language, max_frames: int
) -> tuple[Study | None, list[Rejection]]:
    """Decode a study's files; None where nothing of it is usable.

    Every file ends in the study or in a Rejection, which names it by a keyed hash of its place in the source.
    The study has more key frames than ``max_frames``: which of them are worth keeping is not known here.
    """
    limit = -(-SPARE * max_frames // max(1, files.num_images))
    found: list[_Instance] = []
    rejections: list[Rejection] = []
    contents: set[bytes] = set()
    for file in files.files:
        name = keyed_hash(key, file.name)
        content = file.read_bytes()
        hashed = hashlib.sha256(content or b"").digest()
        with without_warnings():
            one = _read_file(content, name, files.study_uid, limit)
        if isinstance(one, _Instance) and hashed in contents:
            one = "duplicate_file"
        if isinstance(one, str):
            rejections.append(Rejection(name, "read", one))
        else:
            found.append(one)
            contents.add(hashed)
    # Two patients under one UID: one's report must not describe, nor one's split hold, the other's images.
    if len({one.patient_id.casefold() for one in found if one.patient_id}) > 1:
        rejections += [Rejection(one.name, "read", "patient_conflict") for one in found]
        found = []
    return (_study(files, found, key, language) if found else None), rejections


def _read_file(content: bytes | None, name: str, uid: str | None, limit: int) -> _Instance | str:
    """The file's instance with at most ``limit`` frames, or the reason code of its rejection.

    pydicom parses a value when it is first asked for, and each decoder has errors of its own: a damaged file
    may raise anything anywhere, and what was raised may quote the file.
    """
    from pydicom import dcmread

    if content is None:
        return "unreadable_file"
    try:
        dataset = dcmread(io.BytesIO(content))
        modality, found_uid = dataset.get("Modality"), study_uid(dataset)
    except Exception:
        return "not_dicom"
    if modality not in (ULTRASOUND, "SR"):
        return "not_ultrasound"
    if found_uid != uid:  # damaged, or changed since the index: it may be of a study that is made elsewhere
        return "header_mismatch"
    try:
        chosen = key_frames(dataset, limit) if modality == ULTRASOUND else []
        pixels = to_rgb(dataset, chosen) if chosen else None
    except Exception:
        return "unreadable_pixels"
    try:
        return _instance(dataset, pixels, name)
    except Exception:
        return "malformed"


def _instance(dataset: Dataset, pixels_NHW3: NDArray[np.uint8] | None, name: str) -> _Instance:
    regions = () if pixels_NHW3 is None else read_regions(dataset)
    return _Instance(
        name=name,
        patient_id=str(dataset.get("PatientID") or "").strip(),
        patient_name=str(dataset.get("PatientName") or ""),
        order=(int(dataset.get("SeriesNumber") or 0), int(dataset.get("InstanceNumber") or 0)),
        words=" ".join(str(dataset.get(tag, "")) for tag in ("BodyPartExamined", "StudyDescription")),
        frames=() if pixels_NHW3 is None else tuple(Frame(pixels, regions) for pixels in pixels_NHW3),
        report=read_report(dataset),
        identifiers=identifiers(dataset),
        date=study_date(dataset),
    )


def _study(files: StudyFiles, group: Sequence[_Instance], key: bytes, language: Language) -> Study:
    images = sorted((one for one in group if one.frames), key=lambda one: one.order)
    report = next((one.report for one in group if one.report is not None), None)
    first = images[0] if images else group[0]
    patient_id = next((one.patient_id for one in (first, *group) if one.patient_id), "")
    return Study(
        study_hash=keyed_hash(key, files.identity),
        patient_key=keyed_hash(key, patient_id or first.patient_name or files.identity),
        system=named_system(first.words) or (named_system(report.text) if report else None),
        language=language,
        frames=tuple(replace(frame, cine=cine) for cine, one in enumerate(images) for frame in one.frames),
        report=report,
        source=files.files[0].source,
        identifiers=tuple(dict.fromkeys(value for one in group for value in one.identifiers)),
        date=next((one.date for one in (*images, *group) if one.date), None),
    )


def evenly(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, first and last included, evenly spread."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, limit))})


def key_frames(dataset: Dataset, limit: int) -> list[int]:
    """Positions of the Representative Frame (0028,6010) if named, else of an even sample of the frames."""
    count = int(dataset.get("NumberOfFrames") or 1)
    named = dataset.get("RepresentativeFrameNumber")
    if named and 1 <= int(named) <= count:
        return [int(named) - 1]
    return evenly(count, limit)


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
