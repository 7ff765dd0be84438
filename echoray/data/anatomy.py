"""The words that name each of the seven systems, in header fields and reports."""

from __future__ import annotations

import re

from echoray.types import SYSTEMS, System

# Word stems; ASCII ones match at a word's beginning, Chinese ones anywhere.
SYSTEM_WORDS: dict[System, tuple[str, ...]] = {
    "liver": ("liver", "hepat", "intrahepat", "肝"),
    "kidney": ("kidney", "renal", "perirenal", "肾"),
    "thyroid": ("thyroid", "甲状腺"),
    "vessel": ("carotid", "arter", "vascular", "vessel", "vein", "venous", "动脉", "静脉", "血管"),
    "gynecology": (
        "uter",
        "ovar",
        "endometri",
        "myometri",
        "gynec",
        "gynaec",
        "pelvi",
        "子宫",
        "卵巢",
        "附件",
        "内膜",
    ),
    "heart": (
        "heart",
        "cardia",
        "echocardio",
        "ventric",
        "atri",
        "pericard",
        "心脏",
        "心室",
        "心房",
        "心包",
        "室壁",
    ),
    "breast": ("breast", "mamma", "bi-rads", "乳"),
}
SYSTEM_NAMES: dict[str, dict[System, str]] = {
    "en": {
        "liver": "liver",
        "kidney": "kidney",
        "thyroid": "thyroid",
        "vessel": "carotid artery",
        "gynecology": "uterus",
        "heart": "heart",
        "breast": "breast",
    },
    "zh": {
        "liver": "肝脏",
        "kidney": "肾脏",
        "thyroid": "甲状腺",
        "vessel": "颈动脉",
        "gynecology": "子宫",
        "heart": "心脏",
        "breast": "乳腺",
    },
}


def named_system(text: str) -> System | None:
    """The system that ``text`` names most often; None when it names none, or two equally often."""
    counts = {system: len(_pattern(system).findall(text.lower())) for system in SYSTEMS}
    ranked = sorted(counts.values(), reverse=True)
    if not ranked[0] or ranked[0] == ranked[1]:
        return None
    return max(SYSTEMS, key=lambda system: counts[system])


def _pattern(system: System) -> re.Pattern[str]:
    stems = (rf"\b{re.escape(word)}" if word.isascii() else re.escape(word) for word in SYSTEM_WORDS[system])
    return re.compile("|".join(stems))
