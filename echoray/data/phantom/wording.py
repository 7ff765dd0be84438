"""What scanners write on a screen, by kind; the notations are in ``screens_<language>.yaml``.

Names, numbers and places are coined here and stand in no rule; nobody is meant.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from echoray.data.phantom.identity import Identity, draw_patient, draw_visit
from echoray.types import Language

GOES = frozenset((
    "name", "identifier", "birth_date", "date", "clock", "institution", "operator", "initials", "age_sex"
))  # fmt: skip
_COINED_SHARE = 2 / 3  # the other names are common ones
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ONSETS = (
    "b",
    "br",
    "ch",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "sch",
    "st",
    "th",
    "v",
    "w",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ee", "ou")
_CODAS = ("", "ck", "l", "ld", "m", "n", "nd", "ng", "r", "rt", "s", "ss", "tt", "x")
_FAMILIES_ZH = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶"
)
_GIVENS_ZH = (
    "伟芳娜敏静丽强磊军洋勇艳杰涛明超霞平刚玲桂英华建文辉力健俊峰浩宇轩涵怡佳琪欣妍梓博晨曦睿航凯鑫雨婷"
)
_TOWNS_ZH = "云岚青屿临澜锦川北泽栖霖岭禾望澄汐源瑶溪"
_CAPITALS = "ABCDEFGHJKLMNPRSTVWYZ"


@lru_cache(maxsize=2)
def _screens(language: Language) -> dict[str, Any]:
    import yaml

    source = resources.files("echoray.data.phantom") / f"screens_{language}.yaml"
    own: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    return own if language == "en" else _screens("en") | own


def draw_identity(rng: np.random.Generator, language: Language) -> Identity:
    """An invented patient and visit, most with a name that is in no list."""
    patient = draw_patient(rng, language, female=bool(rng.random() < 0.5))
    visit = draw_visit(rng, language, patient)
    if rng.random() < _COINED_SHARE:
        family, given = _coined(rng, language), _coined(rng, language, given=True)
        name = family + given if language == "zh" else f"{given} {family}"
        patient = replace(patient, name=name, dicom_name=f"{family}^{given}")
    town = (
        "".join(rng.choice(list(_TOWNS_ZH), 2, replace=False)) if language == "zh" else _coined(rng, language)
    )
    hospital = _one(rng, _screens(language)["places"]).format(town=town)
    if rng.random() < 0.4:
        hospital = hospital.upper()
    accession = _drawn(rng, _CAPITALS, 2) + _drawn(rng, "0123456789", 7)
    visit = replace(visit, hospital=hospital, accession=accession)
    if language == "en" and rng.random() < 0.3:
        visit = replace(visit, operator=_drawn(rng, _CAPITALS, 3))
    return Identity(replace(patient, patient_id=_number(rng)), visit)


def words(kind: str, rng: np.random.Generator, identity: Identity, language: Language) -> str:
    """One wording of a kind, labelled or bare, in one of its notations."""
    screens = _screens(language)
    fields: dict[str, Any] = {}
    if kind in GOES:
        fields = _who(rng, identity, screens) | _when(rng, identity, screens)
    elif kind == "anatomy":
        fields = {name: _one(rng, screens[f"{name}s"]) for name in ("side", "organ", "plane", "view")}
        fields["n"] = int(rng.integers(1, 13))
    else:
        fields = _values(rng)
    text = _one(rng, screens[kind]).format(**fields).strip()
    return text.upper() if kind == "anatomy" and rng.random() < 0.4 else text


def _who(rng: np.random.Generator, identity: Identity, screens: dict[str, Any]) -> dict[str, Any]:
    patient, visit = identity.patient, identity.visit
    family = visit.doctor.split()[-1]
    return identity.fields() | {
        "upper": patient.name.upper(),
        "dicom": patient.dicom_name,
        "comma": patient.dicom_name.replace("^", ", "),
        "comma_upper": patient.dicom_name.replace("^", ", ").upper(),
        "tight": patient.dicom_name.replace("^", ","),
        "number": patient.patient_id,
        "doctor": family,
        "doctor_upper": family.upper(),
        "doctor_name": visit.doctor,
        "dotted": ".".join(visit.operator) + ".",
        "code": _drawn(rng, _CAPITALS, int(rng.integers(2, 4))),
        "long_sex": screens["sexes"][patient.sex],
    }


def _when(rng: np.random.Generator, identity: Identity, screens: dict[str, Any]) -> dict[str, Any]:
    hour, minute, second = identity.visit.time.split(":")
    half_hour = (int(hour) - 1) % 12 + 1
    return {
        "clock": identity.visit.time,
        "short": f"{hour}:{minute}",
        "half": f"{half_hour}:{minute}:{second}",
        "half_short": f"{half_hour}:{minute}",
        "hour": hour,
        "minute": minute,
        "noon": screens["noons"][int(hour) >= 12],
        "date": _written(rng, identity.visit.date, screens),
        "birth": _written(rng, identity.patient.birth_date, screens),
    }


def _written(rng: np.random.Generator, iso: str, screens: dict[str, Any]) -> str:
    day = datetime.date.fromisoformat(iso)
    month = _MONTHS[day.month - 1]
    return _one(rng, screens["dates"]).format(d=day, month=month, month_upper=month.upper())


def _values(rng: np.random.Generator) -> dict[str, Any]:
    """Numbers in the ranges of measurements and settings."""
    return {
        "n": int(rng.integers(1, 9)),
        "size": f"{rng.uniform(2, 60):.1f}",
        "small": f"{rng.uniform(0.3, 6):.2f}",
        "speed": f"{rng.uniform(10, 99):.1f}",
        "share": f"{rng.uniform(0.4, 0.99):.2f}",
        "percent": int(rng.integers(40, 99)),
        "mi": f"{rng.uniform(0.2, 1.9):.1f}",
        "ti": f"{rng.uniform(0, 2):.1f}",
        "depth": f"{rng.uniform(3, 22):.1f}",
        "mhz": f"{rng.uniform(1.5, 15):.1f}",
    }


def _coined(rng: np.random.Generator, language: Language, *, given: bool = False) -> str:
    if language == "zh":
        return _drawn(rng, _GIVENS_ZH, int(rng.integers(1, 3))) if given else _drawn(rng, _FAMILIES_ZH, 1)
    parts = (rng.choice(part) for _ in range(int(rng.integers(2, 4))) for part in (_ONSETS, _VOWELS, _CODAS))
    return "".join(map(str, parts)).capitalize()


def _number(rng: np.random.Generator) -> str:
    """A hospital's number for a patient: # is a digit, @ a capital."""
    shapes = ("######", "#########", "###########", "@######", "@@-#####", "###-##-####", "##@#####")
    marks = {"#": "0123456789", "@": _CAPITALS}
    return "".join(_drawn(rng, marks[one], 1) if one in marks else one for one in _one(rng, shapes))


def _drawn(rng: np.random.Generator, characters: str, count: int) -> str:
    return "".join(rng.choice(list(characters), count))


def _one(rng: np.random.Generator, choices: Any) -> str:
    return str(choices[int(rng.integers(len(choices)))])
