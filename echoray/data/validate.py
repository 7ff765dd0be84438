"""What is wrong with a source, record by record, as the data pipeline would find it; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from echoray.config import RunConfig
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.quality import study_rejection
from echoray.data.sources.conversations import (
    CONVERSATIONS,
    is_conversation_file,
    list_conversations,
    read_conversation,
)
from echoray.data.sources.defects import Defect
from echoray.data.sources.dialogs import FORMS
from echoray.data.sources.dicom import read_study
from echoray.data.sources.image_report import (
    IMAGE_REPORT,
    REPORT_FILES,
    TABLE,
    list_image_reports,
    read_image_report,
)
from echoray.data.sources.images import is_image
from echoray.data.sources.index import ARCHIVE, StudyFiles, group_studies, list_source, read_header
from echoray.data.sources.listed import Listed
from echoray.data.sources.rows import printable
from echoray.data.sources.tables import folder_and_file, place_of
from echoray.errors import InputDataError
from echoray.storage import Store, store_at
from echoray.types import Study

Format = Literal["auto", "dicom", "image-report", "llava", "swift", "openai"]
FORMATS: tuple[Format, ...] = get_args(Format)
_KEY = b"names within one validation"
_ATTRIBUTES = {
    "header_mismatch": "StudyInstanceUID (0020,000D)",
    "not_ultrasound": "Modality (0008,0060)",
    "patient_conflict": "PatientID (0010,0020)",
    "unreadable_pixels": "PixelData (7FE0,0010)",
}


@dataclass(frozen=True)
class Finding:
    """A defect and where it is: the file below the source, and the row or line in it where it has any."""

    file: str
    row: int | None
    defect: Defect


@dataclass(frozen=True)
class Checked:
    """The findings of one record (none of a clean one), or of a table as a whole."""

    findings: tuple[Finding, ...]
    is_record: bool = True


def validate(run: RunConfig, uri: str, form: Format) -> Iterator[Checked]:
    """Check each record of the source at ``uri``.

    Everything is read as the run's data step would, images included.
    Raises InputDataError where there is nothing to validate.
    """
    folder, only = folder_and_file(uri)
    store = store_at(run, folder)
    sizes = store.sizes()
    if not sizes or (only and only not in sizes):
        raise InputDataError(
            f"{uri}: missing or empty", hint="name a folder, a prefix or a conversation file"
        )
    kind = _detected(sizes, only) if form == "auto" else form
    if kind == "dicom":
        yield from _dicom(run, store)
        return
    if kind == IMAGE_REPORT:
        records = list_image_reports(place_of(store, IMAGE_REPORT, 0))
    else:
        asked = next((one for one in FORMS if one == kind), None)
        records = list_conversations(place_of(store, CONVERSATIONS, 0), only, asked)
    for one in records:
        yield _record(run, one)


def _detected(sizes: Mapping[str, int], only: str) -> str:
    names = {path.rpartition("/")[2].lower() for path in sizes}
    if only:
        return IMAGE_REPORT if only == TABLE else CONVERSATIONS
    if TABLE in sizes or names.intersection(REPORT_FILES):
        return IMAGE_REPORT
    if any(name.endswith(".dcm") for name in names):
        return "dicom"
    if any(map(is_conversation_file, sizes)):
        return CONVERSATIONS
    return IMAGE_REPORT if all(map(is_image, sizes)) else "dicom"


def _record(run: RunConfig, one: Listed) -> Checked:
    defects = list(one.defects)
    if one.study is not None and not any(defect.fatal for defect in defects):
        defects += _read(run, one.study)
    findings = tuple(Finding(printable(one.file), one.row, defect) for defect in defects)
    return Checked(findings, one.study is not None)


def _read(run: RunConfig, files: StudyFiles) -> Iterator[Defect]:
    """What only reading shows: damaged images, an empty report, no system."""
    reader = read_conversation if files.kind == CONVERSATIONS else read_image_report
    study, rejections = reader(files, key=_KEY, language=run.data.language, max_frames=run.data.max_frames)
    yield from (Defect(one.reason, "", one.detail) for one in rejections)
    yield from _unusable(study)


def _unusable(study: Study | None) -> Iterator[Defect]:
    reason = None if study is None else study_rejection(study)
    if reason is not None:
        yield Defect(reason)


def _dicom(run: RunConfig, store: Store) -> Iterator[Checked]:
    files = list_source(store, ARCHIVE).files
    for one in group_studies(files, [read_header(file) for file in files]):
        study, rejections = read_study(one, key=_KEY, language=run.data.language, max_frames=1)
        paths = {keyed_hash(_KEY, file.name): file.path for file in one.files}
        found = [
            Finding(
                printable(paths[bad.record]),
                None,
                Defect(bad.reason, _ATTRIBUTES.get(bad.reason, ""), bad.detail),
            )
            for bad in rejections
        ]
        found += [Finding(printable(one.files[0].path), None, defect) for defect in _unusable(study)]
        yield Checked(tuple(found))
