"""What can be wrong with a record of a table or a conversation file; codes and field names, never values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

EXPLANATIONS = MappingProxyType(
    {
        "bad_csv": "not as many cells as columns, or quotes that do not match",
        "bad_json": "not valid JSON",
        "bad_task": "expected one of report, diagnosis, vqa for each turn",
        "bad_type": "another type than expected",
        "duplicate_file": "the same content as another file of the study",
        "duplicate_id": "this identity was used before in the file",
        "empty_answer": "an answer without text",
        "empty_question": "a question without text",
        "header_mismatch": "the header differs from the one that was indexed",
        "image_count": "the number of <image> tags differs from the number of images",
        "image_outside": "expected a relative path inside of the source's folder",
        "inline_image": "images inside of the text are not read; write them to files beside it",
        "malformed": "a DICOM attribute that is needed has a value that cannot be used",
        "missing_column": "the table has no such column",
        "missing_image": "the image is not there",
        "no_id": "a row without an identity",
        "no_image": "no image",
        "no_patient": "without a patient, two studies of one may fall into different splits",
        "no_report": "neither report nor conversation",
        "not_dicom": "not a DICOM file",
        "not_image": "expected a .png, .jpg or .jpeg file",
        "not_ultrasound": "Modality (0008,0060) is neither US nor SR",
        "not_utf8": "not UTF-8 text (tables and reports may also be GB18030)",
        "patient_conflict": "more than one patient under one Study Instance UID",
        "remote_url": "remote images are not read; copy them beside the file",
        "reserved_token": "a control token of the model's chat format",
        "role_order": "expected user and assistant by turns, the user first",
        "too_many_images": "more images than data.max_frames",
        "two_reports": "report.txt and report.json in one folder",
        "unknown_column": "not used; rename it if it identifies the patient",
        "unknown_format": "neither LLaVA, swift nor OpenAI messages",
        "unknown_language": "expected en or zh",
        "unknown_role": "expected system, user or assistant",
        "unknown_system": "none of the seven systems is named",
        "unreadable_file": "the file cannot be read",
        "unreadable_image": "not a readable PNG or JPEG",
        "unreadable_pixels": "pixel data is missing or cannot be decoded",
        "video": "videos and audio are not read; export key frames as images",
        "wrong_format": "a record of another format than asked for",
    }
)
# What `echoray data validate` tells, but no reason not to use the record.
ADVICE = frozenset(("no_patient", "unknown_column"))


@dataclass(frozen=True)
class Defect:
    """A reason code, the field that it is about, and a detail that holds positions and counts only."""

    code: str
    field: str = ""
    detail: str = ""

    @property
    def fatal(self) -> bool:
        """Whether the record goes to quarantine for it."""
        return self.code not in ADVICE


def first_fatal(defects: Iterable[Defect]) -> Defect | None:
    """The defect for which a record is rejected, or None where it is usable."""
    return next((one for one in defects if one.fatal), None)
