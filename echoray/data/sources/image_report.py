"""Images and reports as PNG or JPEG files: a folder per study, or a ``studies.csv`` that names them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping

from echoray.data.deidentify.keys import keyed_hash
from echoray.data.sources.defects import Defect
from echoray.data.sources.dicom import SPARE, evenly
from echoray.data.sources.fields import (
    ALIASES,
    KNOWN,
    field_defects,
    identifiers,
    language_of,
    patient_of,
    renamed,
    study_date,
    system_of,
)
from echoray.data.sources.images import is_image
from echoray.data.sources.index import SourceFile, StudyFiles
from echoray.data.sources.listed import (
    Listed,
    Place,
    content_of_record,
    read_frames,
    rejection,
    study_files,
)
from echoray.data.sources.rows import Row, csv_rows, decoded, is_text, parsed_json
from echoray.types import Language, Rejection, Report, Study

IMAGE_REPORT = "image-report"
TABLE = "studies.csv"
REPORT_FILES = ("report.json", "report.txt")
_HEADING = re.compile(
    r"^[ \t]*(?:(?P<findings>findings|超声所见|检查所见|影像所见|所见)"
    r"|impressions?|conclusions?|超声提示|超声诊断|诊断意见|诊断提示|提示)[ \t]*(?:[:：]|$)[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)


def list_image_reports(place: Place) -> Iterator[Listed]:
    """The rows of the source's ``studies.csv``, or, where there is none, its study folders."""
    return _rows(place) if TABLE in place.sizes else _folders(place)


def missing_columns(columns: list[str]) -> list[str]:
    """The columns without which a table describes no studies ("a or b" where one of two is enough)."""
    named = {ALIASES.get(one, one) for one in columns}
    wanted = (("study_id",), ("patient_id",), ("images", "image"), ("findings", "impression"))
    return [" or ".join(names) for names in wanted if not named.intersection(names)]


def _rows(place: Place) -> Iterator[Listed]:
    columns, rows = csv_rows(place.store.read_bytes(TABLE))
    advice = [Defect("unknown_column", one) for one in columns if ALIASES.get(one, one) not in KNOWN]
    defects = [*(Defect("missing_column", one) for one in missing_columns(columns)), *advice]
    if defects:
        yield Listed(TABLE, 1, tuple(defects), None)
        if any(one.fatal for one in defects):
            return
    seen: set[str] = set()
    for row in rows:
        yield _row(place, row, seen)


def _row(place: Place, row: Row, seen: set[str]) -> Listed:
    fields = renamed(row.value)
    defects = [row.defect] if row.defect else field_defects(fields, "system")
    name = fields.get("study_id", "")
    identity = place.identity("id", name)
    if not name or name in seen or row.defect:
        defects += [] if row.defect else [Defect("duplicate_id" if name else "no_id", "study_id")]
        identity = place.identity("row", row.number)
    seen |= set() if row.defect else {name}
    if row.defect is None and not patient_of(fields):
        defects.append(Defect("no_patient", "patient_id"))
    column = "images" if fields.get("images") else "image"
    paths = [path.strip() for path in fields.get(column, "").split(";") if path.strip()]
    files, missing = ([], []) if row.defect else place.images(paths, "", column)
    defects += missing
    return Listed(TABLE, row.number, tuple(defects), study_files(place, identity, files, defects, fields))


def _folders(place: Place) -> Iterator[Listed]:
    """A study is the folder of a report with all images below it, or a folder of images without a report."""
    reports = {posixpath.dirname(path) for path in place.sizes if _name(path) in REPORT_FILES}
    groups: dict[str, list[SourceFile]] = {}
    for path in sorted(place.sizes):
        if is_image(path) or _name(path) in REPORT_FILES:
            groups.setdefault(_study_folder(posixpath.dirname(path), reports), []).append(place.file(path))
    for folder, files in sorted(groups.items()):
        identity = place.identity("folder", folder)
        found = sorted(_name(one.path) for one in files if _name(one.path) in REPORT_FILES)
        defects = [Defect("two_reports")] if len(found) > 1 else []
        yield Listed(folder or ".", None, tuple(defects), study_files(place, identity, files, defects, {}))


def _study_folder(folder: str, reports: set[str]) -> str:
    above = folder
    while above not in reports:
        if not above:
            return folder
        above = posixpath.dirname(above)
    return above


def _name(path: str) -> str:
    return posixpath.basename(path).lower()


def read_image_report(
    files: StudyFiles, *, key: bytes, language: Language, max_frames: int
) -> tuple[Study | None, list[Rejection]]:
    """The study of a table's row or of a folder, or why there is none; one bad image rejects all of it.

    As of DICOM, more frames than ``max_frames`` are read, so that blank and repeated ones cost no places.
    """
    fields: Mapping[str, str]
    fields, rejections = content_of_record(files, key)
    if rejections:
        return None, rejections
    images = [one for one in files.files if is_image(one.path)]
    for report in (one for one in files.files if not is_image(one.path)):
        found = _report_fields(report)
        if isinstance(found, Defect):
            return None, [rejection(files, key, found)]
        fields = found
    frames = read_frames(images, evenly(len(images), SPARE * max_frames) if images else [])
    if isinstance(frames, Defect):
        return None, [rejection(files, key, frames)]
    text = Report(fields.get("findings", ""), fields.get("impression", ""))
    study = Study(
        study_hash=keyed_hash(key, files.identity),
        patient_key=keyed_hash(key, patient_of(fields) or files.identity),
        system=system_of(fields.get("system", ""), text.text),
        language=language_of(fields.get("language", ""), language),
        frames=frames,
        report=text if text.text else None,
        source=IMAGE_REPORT,
        identifiers=identifiers(fields),
        date=study_date(fields),
    )
    return study, []


def _report_fields(file: SourceFile) -> Mapping[str, str] | Defect:
    """The fields of report.json, or the sections of report.txt."""
    name, content = _name(file.path), file.read_bytes()
    if content is None:
        return Defect("unreadable_file", name)
    if name.endswith(".txt"):
        text = decoded(content)
        return sections(text) if is_text(text) else Defect("not_utf8", name)
    value, defect = parsed_json(content)
    if defect is None and not isinstance(value, dict):
        defect = Defect("bad_type", "", "expected an object")
    if defect is not None:
        return Defect(defect.code, name, defect.detail)
    fields = renamed(value)
    if not all(map(is_text, fields.values())):
        return Defect("not_utf8", name)
    return next(iter(field_defects(fields, "system")), fields)


def sections(text: str) -> dict[str, str]:
    """Findings and impression by their headings; what stands before any heading is findings."""
    found: dict[str, list[str]] = {"findings": [], "impression": []}
    section, start = "findings", 0
    for heading in _HEADING.finditer(text):
        found[section].append(text[start : heading.start()])
        section, start = ("findings" if heading["findings"] else "impression"), heading.end()
    found[section].append(text[start:])
    return {name: "\n".join(part.strip() for part in parts if part.strip()) for name, parts in found.items()}
