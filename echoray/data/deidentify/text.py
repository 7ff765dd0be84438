"""Report text: sentences and clauses that only identify are dropped, spans in clinical ones are cut."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from echoray.data.deidentify.dates import with_intervals
from echoray.data.deidentify.text_rules import TextRules

# A full stop ends a sentence unless it stands in a number, an initial or after a title.
_SENTENCE = re.compile(
    r"(?<=[。！？；])|(?<=[.!?])(?<!\b[Dd][Rr]\.)(?<!\b[Dd][Rr][Ss]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bProf\.)(?<!\b[Nn]o\.)(?<!\bSt\.)"
    r"(?<!\b[A-Z]\.)\s+(?=[^\d\s])"
)
_CLAUSE = re.compile(r"(?<=[，；、（）])|(?<=[,;])(?=\s)|(?=\((?!\+?\d+\)))|(?<=\))(?!\s?\d\d)")
# Short words that staff's initials or a placeholder in a name may equal, and that a report cannot spare.
_ABBREVIATIONS = frozenset((
    "NO", "IN", "IS", "OF", "ON", "AT", "TO", "AS", "BY", "IT", "CT", "MR", "US", "RT", "LT", "DR", "AP",
    "LV", "RV", "LA", "RA", "AO", "MI", "TI", "PW", "CW", "CF", "CCA", "ICA", "ECA", "IVC", "CBD",
))  # fmt: skip
_LEFTOVERS = (
    (re.compile(r"\(\s*[,;:]?\s*\)|（\s*[，；：]?\s*）"), ""),
    (re.compile(r"\s+([,.;:，。；：])"), r"\1"),
    (re.compile(r"([,，;；:：])(\s*[,，;；:：])+"), r"\1"),
    (re.compile(r"[,，;；:：、]+\s*([.。])"), r"\1"),
    (re.compile(r"^[\s,，;；:：、.。]+"), ""),
    (re.compile(r"[ \t]{2,}"), " "),
)


@dataclass(frozen=True)
class RedactedText:
    """Text without patient information, and how many removals there were by category."""

    text: str
    removed: Mapping[str, int]


def redact_text(
    text: str, *, identifiers: Iterable[str], rules: TextRules, study_date: datetime.date | None = None
) -> RedactedText:
    """Remove names, numbers, dates, addresses, institutions and staff; measurements and lines stay.

    Dates of clinical events become intervals where ``study_date``, Study Date (0008,0020), is known.
    """
    known = known_pattern(identifiers)
    removed: Counter[str] = Counter()
    lines = text.splitlines()
    if study_date is not None:
        told = [with_intervals(line, study_date, rules) for line in lines]
        lines = [line for line, _ in told]
        removed["interval"] += sum(count for _, count in told)
    lines = [_redact_line(line, known, rules, removed) for line in lines]
    return RedactedText("\n".join(line for line in lines if line), dict(+removed))


def _redact_line(line: str, known: re.Pattern[str] | None, rules: TextRules, removed: Counter[str]) -> str:
    kept = []
    for sentence in (part for part in _SENTENCE.split(line) if part and part.strip()):
        category = _category(sentence, known, rules)
        if category is None:
            kept.append(sentence)
            continue
        removed[category] += 1
        if rules.clinical.search(sentence):
            kept.append(_cut(sentence, known, rules))
    spaced = "".join(one if one[-1:] in "。！？；" else f"{one.strip()} " for one in kept)
    return spaced.strip()


def known_pattern(identifiers: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the header's strings; short ASCII ones only as whole words in their own case.

    Initials that are a common clinical abbreviation as well are left to the rules.
    """
    parts = []
    for value in sorted(set(identifiers), key=len, reverse=True):
        escaped = re.escape(value)
        if not value.isascii():
            parts.append(f"(?i:{escaped})")
        elif len(value) > 3:
            parts.append(rf"(?i:(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9]))")
        elif value.upper() not in _ABBREVIATIONS:
            parts.append(rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])")
    return re.compile("|".join(parts)) if parts else None


def _category(text: str, known: re.Pattern[str] | None, rules: TextRules) -> str | None:
    return "known" if known and known.search(text) else rules.denied(text)


def _patterns(known: re.Pattern[str] | None, rules: TextRules) -> list[re.Pattern[str]]:
    return [*([known] if known else []), *(pattern for _, pattern in rules.deny)]


def _cut(sentence: str, known: re.Pattern[str] | None, rules: TextRules) -> str:
    """The sentence without clauses that only identify, and without identifying spans in the others."""
    for pattern in _patterns(known, rules):  # a name or an address may go on behind a comma
        sentence = pattern.sub(lambda found: "" if _CLAUSE.search(found[0]) else found[0], sentence)
    clauses = [
        clause
        for clause in _CLAUSE.split(sentence)
        if _category(clause, known, rules) is None or rules.clinical.search(clause)
    ]
    # A clause at the end takes the full stop with it.
    end = sentence[-1:] if sentence[-1:] in ".。！？；" else ""
    text = "".join(clauses)
    text = text if text.endswith(end) else text + end
    text = _tidy(text)
    while _category(text, known, rules) is not None:  # what closes up after a cut may identify as well
        for pattern in _patterns(known, rules):
            text = pattern.sub("", text)
        text = _tidy(text)
    return text


def _tidy(text: str) -> str:
    for pattern, replacement in _LEFTOVERS:
        text = pattern.sub(replacement, text)
    return text
