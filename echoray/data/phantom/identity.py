"""Invented patients and visits: everything here is made up, and is what de-identification has to remove."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from echoray.types import Language

Sex = Literal["F", "M"]

_FAMILY = (
    "Okafor",
    "Lindqvist",
    "Moreau",
    "Tanaka",
    "Silva",
    "Novak",
    "Haddad",
    "Brennan",
    "Kowalski",
    "Iyer",
    "Castellano",
    "Dubois",
    "Eriksen",
    "Farrell",
    "Grantham",
    "Hollis",
    "Ibarra",
    "Jansen",
    "Keller",
    "Lowell",
)
_GIVEN: Mapping[Sex, tuple[str, ...]] = {
    "F": (
        "Grace",
        "Ingrid",
        "Celine",
        "Yuki",
        "Beatriz",
        "Petra",
        "Layla",
        "Maeve",
        "Zofia",
        "Anita",
        "Helena",
    ),
    "M": (
        "Samuel",
        "Anders",
        "Julien",
        "Kenji",
        "Rafael",
        "Marek",
        "Omar",
        "Declan",
        "Piotr",
        "Vikram",
        "Stefan",
    ),
}
_HOSPITALS = (
    "St Maren Hospital",
    "Alderbrook General Hospital",
    "Northvale Medical Center",
    "Westhollow Clinic",
    "Harrowgate University Hospital",
)
_FAMILY_ZH = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
_GIVEN_ZH: Mapping[Sex, tuple[str, ...]] = {
    "F": ("秀兰", "桂英", "丽娟", "雪梅", "玉珍", "晓燕", "婷", "静怡", "海霞", "文慧", "小红"),
    "M": ("建国", "志强", "永刚", "海涛", "国庆", "伟", "文斌", "家豪", "振华", "德明", "小军"),
}
_HOSPITALS_ZH = (
    "云岚市第一人民医院",
    "青屿市中心医院",
    "临澜区中医院",
    "锦川市妇幼保健院",
    "北泽大学附属医院",
)


@dataclass(frozen=True)
class Patient:
    """One invented person; dates are ISO 8601."""

    name: str
    dicom_name: str  # family^given
    patient_id: str
    birth_date: str
    sex: Sex
    phone: str


@dataclass(frozen=True)
class Visit:
    """One invented examination of a patient."""

    date: str
    time: str
    age: int
    hospital: str
    doctor: str
    operator: str  # initials in English, full name in Chinese
    accession: str


@dataclass(frozen=True)
class Identity:
    """Whom a study is about, and when, where and by whom it was made."""

    patient: Patient
    visit: Visit

    def strings(self) -> tuple[str, ...]:
        """Every identifying string, as it is written in the report or burned into a frame."""
        person, visit = self.patient, self.visit
        return (
            person.name,
            person.patient_id,
            person.birth_date,
            person.phone,
            visit.date,
            visit.hospital,
            visit.doctor,
            visit.operator,
            visit.accession,
        )

    def fields(self) -> dict[str, str | int]:
        """All fields by name, for templates."""
        return {**asdict(self.patient), **asdict(self.visit)}


def draw_patient(rng: np.random.Generator, language: Language, *, female: bool) -> Patient:
    """An invented person; ``female`` where an examination of the patient asks for it."""
    sex: Sex = "F" if female or rng.random() < 0.5 else "M"
    family_names, given_names = (_FAMILY_ZH, _GIVEN_ZH) if language == "zh" else (_FAMILY, _GIVEN)
    family, given = str(rng.choice(list(family_names))), str(rng.choice(given_names[sex]))
    birth = datetime.date(int(rng.integers(1940, 2001)), int(rng.integers(1, 13)), int(rng.integers(1, 29)))
    if language == "zh":
        phone = f"1990000{rng.integers(10_000):04d}"
        name = family + given
    else:
        phone = f"555-01{rng.integers(100):02d}"  # numbers kept for fiction
        name = f"{given} {family}"
    return Patient(name, f"{family}^{given}", f"{rng.integers(10**7, 10**8)}", birth.isoformat(), sex, phone)


def draw_visit(rng: np.random.Generator, language: Language, patient: Patient) -> Visit:
    """An invented examination of ``patient`` between 2021 and 2025."""
    day = datetime.date(2021, 1, 4) + datetime.timedelta(days=int(rng.integers(0, 1800)))
    birth = datetime.date.fromisoformat(patient.birth_date)
    age = day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))
    time = f"{rng.integers(8, 18):02d}:{rng.integers(60):02d}:{rng.integers(60):02d}"
    accession = f"US{day:%y}{rng.integers(10**6):06d}"
    if language == "zh":
        doctor, operator = (_person_zh(rng) for _ in range(2))
        return Visit(day.isoformat(), time, age, str(rng.choice(_HOSPITALS_ZH)), doctor, operator, accession)
    doctor = f"{rng.choice(_GIVEN['F'] + _GIVEN['M'])} {rng.choice(_FAMILY)}"
    operator = "".join(rng.choice(list("ABCDEFGHJKLMNPRSTW"), 2))
    return Visit(day.isoformat(), time, age, str(rng.choice(_HOSPITALS)), doctor, operator, accession)


def _person_zh(rng: np.random.Generator) -> str:
    return str(rng.choice(list(_FAMILY_ZH))) + str(rng.choice(_GIVEN_ZH["F"] + _GIVEN_ZH["M"]))
