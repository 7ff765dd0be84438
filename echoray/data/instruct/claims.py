"""What a text claims: findings with their polarity and side, measurements, risk grades, echogenicity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from echoray.data.instruct.vocabulary import Vocabulary

_NUMBER = r"\d+(?:\.\d+)?"
# To the first unit named: a report in centimetres and an answer in millimetres say the same.
_SCALES = {
    "mm": ("mm", 1.0), "毫米": ("mm", 1.0), "cm": ("mm", 10.0), "厘米": ("mm", 10.0),
    "ml": ("ml", 1.0), "毫升": ("ml", 1.0), "mmhg": ("mmhg", 1.0), "毫米汞柱": ("mmhg", 1.0),
    "cm/s": ("cm/s", 1.0), "m/s": ("cm/s", 100.0), "bpm": ("bpm", 1.0), "次/分": ("bpm", 1.0),
    "%": ("%", 1.0), "％": ("%", 1.0),
}  # fmt: skip
_UNIT = "|".join(re.escape(one) for one in sorted(_SCALES, key=len, reverse=True))
# One or more numbers, joined as axes or as a range; those without a unit take the last one's.
_MEASURED = re.compile(
    rf"(?<![\d.A-Za-z-]){_NUMBER}\s*(?:{_UNIT})?(?:\s*(?:[x×*~～–-]|by|to|至|到)\s*{_NUMBER}\s*(?:{_UNIT})?)*",
    re.IGNORECASE,
)
_ONE = re.compile(rf"({_NUMBER})\s*({_UNIT})?", re.IGNORECASE)
_NO_UNIT = re.compile(r"[A-Za-z²³^/]")  # "mm²", "cm/s/s", "mls"
_GRADE = re.compile(
    r"(TI|BI|LI|O|PI)[-\s]?RADS\W{0,3}(?:(?:category|class|grade|score|分级|分类|类别|评为|为|is|of|was|[:：])\W{0,2})*"
    r"([0-6][a-c]?)(?!\d|\.\d)(?:\s*(?:[-–~/]|or|to|或|至)\s*([0-6][a-c]?)(?!\d|\.\d))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Measurement:
    """A number with its unit, as written and in the unit's base; ``step`` is half of its last digit."""

    text: str
    base: str
    value: float
    step: float

    def is_of(self, other: Measurement) -> bool:
        """Whether ``other``, rounded as this one is written, is this one."""
        return self.base == other.base and abs(self.value - other.value) <= self.step * (1 + 1e-9)


def measurements(text: str, words: Vocabulary, *, limits: bool) -> list[Measurement]:
    """The numbers with units in a text; with ``limits``, those that may be one ("over 10 mm") as well."""
    found = []
    for group in _MEASURED.finditer(text):
        if _NO_UNIT.match(text[group.end() :]) or (not limits and _is_limit(text, group, words)):
            continue
        found += _of_group(group[0])
    return found


def _is_limit(text: str, group: re.Match[str], words: Vocabulary) -> bool:
    before = text[max(0, group.start() - 40) : group.start()]
    return bool(words.threshold_before.search(before) or words.threshold_after.match(text[group.end() :]))


def _of_group(text: str) -> list[Measurement]:
    parts = _ONE.findall(text)
    unit, found = "", []
    for number, own in reversed(parts):
        unit = own.lower() or unit
        if unit:
            base, scale = _SCALES[unit]
            decimals = len(number.partition(".")[2])
            step = 0.5 * scale * 10.0**-decimals
            found.append(Measurement(f"{number} {unit}", base, float(number) * scale, step))
    return found[::-1]


def grades(text: str) -> dict[str, set[str]]:
    """The risk grades of a text by scheme: {"TI": {"4a"}}."""
    found: dict[str, set[str]] = {}
    for scheme, first, second in _GRADE.findall(text):
        found.setdefault(scheme.upper(), set()).update(one.lower() for one in (first, second) if one)
    return found


def echogenicities(text: str, words: Vocabulary) -> set[str]:
    """The classes of echogenicity that a text names."""
    return {name for name, pattern in words.echogenicity.items() if pattern.search(text)}


def sides(text: str, words: Vocabulary) -> set[str]:
    """The sides that a text names: "left", "right"; both where it says bilateral."""
    named = {name for name, pattern in words.sides.items() if pattern.search(text)}
    return {"left", "right"} if "both" in named else named


@dataclass(frozen=True)
class Claim:
    """A finding that a sentence affirms or denies, and the sides that the sentence names."""

    finding: str
    affirmed: bool
    sides: frozenset[str]
    hypothetical: bool
    presupposed: bool = False  # "the stone": what is asked about it is something else


def claims(text: str, words: Vocabulary) -> Iterator[Claim]:
    """Every finding that a text affirms or denies; what a qualified negation leaves open is not claimed."""
    for sentence in words.sentences(text):
        named = frozenset(sides(sentence, words))
        hypothetical = bool(words.hypothetical.search(sentence))
        for clause in words.clause.split(sentence):
            for finding, pattern in words.findings.items():
                for found in pattern.finditer(clause):
                    affirmed = _polarity(clause, found, words)
                    if affirmed is not None:
                        known = _presupposed(clause, found, words)
                        yield Claim(finding, affirmed, named, hypothetical, known)


def _polarity(clause: str, found: re.Match[str], words: Vocabulary) -> bool | None:
    """Whether the clause affirms what was ``found`` in it; None where it leaves that open."""
    if words.denied_after.match(clause[found.end() :]):
        return False
    negations = list(words.negation.finditer(clause, 0, found.start()))
    if not negations:
        return True
    between = clause[negations[-1].end() : found.start()]
    return None if words.qualified.search(between) else False


def _presupposed(clause: str, found: re.Match[str], words: Vocabulary) -> bool:
    return bool(
        words.presupposed_before.search(clause[: found.start()])
        or words.presupposed_after.match(clause[found.end() :])
    )
