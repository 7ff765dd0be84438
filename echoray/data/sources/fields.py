"""The fields by which tables, report.json and conversation records describe a study."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from echoray.data.anatomy import named_system
from echoray.data.deidentify.header import day_of, written_forms
from echoray.data.sources.defects import Defect
from echoray.types import SYSTEMS, Language, System

STUDY_FIELDS = ("study_id", "patient_id", "images", "image", "findings", "impression", "system", "language")
# Their values are looked for, literally, in burned-in and report text.
NAMES = ("patient_name", "physician", "doctor", "operator", "sonographer", "reporter", "reviewer")
DATES = ("birth_date", "study_date", "exam_date", "report_date")
STRINGS = ("patient_id", "accession_number", "medical_record_number", "institution", "hospital", "department",
           "phone", "address", "national_id")  # fmt: skip
ALIASES = MappingProxyType(
    {
        **{"检查编号": "study_id", "患者编号": "patient_id", "图像": "images"},
        **dict.fromkeys(("超声所见", "检查所见"), "findings"),
        **dict.fromkeys(("超声提示", "超声诊断"), "impression"),
        **dict.fromkeys(("姓名", "患者姓名"), "patient_name"),
        **{"检查医师": "operator", "报告医师": "reporter", "审核医师": "reviewer"},
        **{"出生日期": "birth_date", "检查日期": "study_date", "报告日期": "report_date"},
        **dict.fromkeys(("病历号", "住院号"), "medical_record_number"),
        **{"检查号": "accession_number", "身份证号": "national_id", "电话": "phone", "地址": "address"},
        **{"医院": "hospital", "科室": "department"},
    }
)
KNOWN = frozenset((*STUDY_FIELDS, *NAMES, *DATES, *STRINGS))
_DAY = re.compile(r"(\d{4})\s*[-/.年]?\s*(\d{1,2})\s*[-/.月]?\s*(\d{1,2})")
# The study's number may stand in its report; its name ("liver") may be a word of the report instead.
_MIN_DIGITS = 4
_NUMBERED = re.compile(r"(?=.*\d).{5,}")


def renamed(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields under their own names, as text; what is no text, number or empty is left out."""
    return {
        ALIASES.get(name, name): str(value).strip()
        for name, value in fields.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    }


def identifiers(fields: Mapping[str, str]) -> tuple[str, ...]:
    """The identifying strings among ``fields`` in the forms in which they are written elsewhere."""
    numbers = [value for value in (fields.get("study_id", ""),) if _NUMBERED.fullmatch(value)]
    return written_forms(
        names=[fields[name] for name in NAMES if fields.get(name)],
        dates=[_day(fields[name]) for name in DATES if fields.get(name)],
        strings=[*(fields[name] for name in STRINGS if _telling(fields.get(name, ""))), *numbers],
    )


def study_date(fields: Mapping[str, str]) -> datetime.date | None:
    """The day of the examination, or None where the fields do not tell it, year first."""
    return day_of(_day(fields.get("study_date") or fields.get("exam_date") or ""))


def patient_of(fields: Mapping[str, str]) -> str:
    """The patient's id, else name, else an empty string; it is only ever hashed."""
    return fields.get("patient_id") or fields.get("patient_name") or ""


def system_of(value: str, text: str) -> System | None:
    """The system that the field names, by code or in words; without a field, the one that ``text`` names."""
    if value in SYSTEMS:
        return value
    return named_system(value or text)


def language_of(value: str, default: Language) -> Language:
    """The language that the field names, else the configured one."""
    return "zh" if value == "zh" else "en" if value == "en" else default


def field_defects(fields: Mapping[str, str], system_field: str) -> list[Defect]:
    """What is wrong with the fields that every kind of record may have."""
    found = []
    if fields.get("language") and fields["language"] not in get_args(Language):
        found.append(Defect("unknown_language", "language"))
    if fields.get(system_field) and system_of(fields[system_field], "") is None:
        found.append(Defect("unknown_system", system_field))
    return found


def _telling(value: str) -> bool:
    """False for nothing, and for a running number so short that a report's measurements would match it."""
    return bool(value) and not (value.isdigit() and len(value) < _MIN_DIGITS)


def _day(value: str) -> str:
    """A date as YYYYMMDD where it is written year first, else unchanged."""
    found = _DAY.match(value)
    return f"{found[1]}{int(found[2]):02d}{int(found[3]):02d}" if found else value
