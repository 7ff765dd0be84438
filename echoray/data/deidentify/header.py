"""DICOM headers: what identifies a patient in them, and its removal (PS3.15, Annex E, Basic Profile)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

# Attributes whose values are looked for, literally, in burned-in and report text.
NAMES = (
    "PatientName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "PhysiciansOfRecord",
)
STRINGS = (
    "PatientID", "OtherPatientIDs", "AccessionNumber", "InstitutionName", "InstitutionAddress", "StationName",
    "InstitutionalDepartmentName", "PatientTelephoneNumbers", "PatientAddress",
)  # fmt: skip
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_METHOD = "EchoRay: PS3.15 Basic Profile, burned-in text removed by rules"


def identifiers(dataset: Dataset) -> tuple[str, ...]:
    """The header's identifying strings in the forms in which they are written elsewhere, without duplicates.

    Short values (an operator's initials) are included; the caller matches them as whole words.
    """
    found: dict[str, None] = {}
    for keyword in NAMES:
        for value in _values(dataset, keyword):
            parts = [part for part in re.split(r"[\^,= ]+", value) if part]
            found |= dict.fromkeys([*parts, " ".join(parts), " ".join(reversed(parts)), "".join(parts)])
    for keyword in STRINGS:
        found |= dict.fromkeys(_values(dataset, keyword))
    for keyword in DATES:
        for value in _values(dataset, keyword):
            found |= dict.fromkeys(_date_forms(value))
    return tuple(value for value in found if len(value) >= 2)


def anonymise(dataset: Dataset) -> Dataset:
    """A copy without identifying attributes, nested sequences and private tags included."""
    import copy

    from dicomanonymizer import anonymize_dataset

    clean = copy.deepcopy(dataset)
    anonymize_dataset(clean, delete_private_tags=True)
    clean.remove_private_tags()
    clean.PatientIdentityRemoved = "YES"  # (0012,0062)
    clean.DeidentificationMethod = _METHOD  # (0012,0063)
    return clean


def _values(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    several = value if not isinstance(value, str) and hasattr(value, "__iter__") else [value]
    return [text for one in several if (text := str(one).strip())]


def _date_forms(value: str) -> list[str]:
    if not re.fullmatch(r"\d{8}", value):
        return [value]
    year, month, day = value[:4], value[4:6], value[6:]
    return [
        value,
        *(sign.join((year, month, day)) for sign in "-/."),
        f"{day}.{month}.{year}",
        f"{day}/{month}/{year}",
        f"{month}/{day}/{year}",
        f"{year}年{int(month)}月{int(day)}日",
    ]
