"""Dates of clinical events in report text become intervals to the study; the rules remove the others."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

from echoray.data.deidentify.text_rules import TextRules

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WORD = r"(?P<word>(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)\.?"
_YEAR, _DAY = r"(?P<y>(?:19|20)\d{2})", r"(?P<d>3[01]|[12]\d|0?[1-9])"
_MONTH = r"(?P<m>1[0-2]|0?[1-9])"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?<![\d.-]){_YEAR} ?(?P<sep>[-/.]) ?{_MONTH} ?(?P=sep) ?{_DAY}(?!\d)",
        rf"(?<!\d){_YEAR}\s*年(?:\s*{_MONTH}\s*月份?(?:\s*{_DAY}\s*[日号])?)?",
        rf"(?<![\dA-Za-z-]){_YEAR}(?P<m>1[0-2]|0[1-9])(?P<d>3[01]|[12]\d|0[1-9])(?!\d)",
        r"(?<![\d.])(?P<a>\d{1,2})(?P<sep>[-/.])(?P<b>\d{1,2})(?P=sep)(?P<y>(?:19|20)\d{2}|\d{2})(?![\d.]\d|\d)",
        rf"(?<!\d){_DAY}(?:st|nd|rd|th)?[ -](?:of )?{_WORD},?[ -](?:of )?{_YEAR}\b",
        rf"\b{_WORD} {_DAY}(?:st|nd|rd|th)?,? {_YEAR}\b",
        rf"\b{_WORD},? (?:of )?{_YEAR}\b",
        rf"(?<!\d){_MONTH}\s*月\s*{_DAY}\s*[日号]",
        rf"\b{_WORD} {_DAY}(?:st|nd|rd|th)?\b(?! ?(?:mm|cm|ml|x|times)\b)",
        rf"(?<!\d){_DAY}(?:st|nd|rd|th)? (?:of )?{_WORD}(?![A-Za-z])",
        rf"(?<![\d.])\b{_YEAR}\b(?![-/.]?\d)(?! ?(?:mm|cm|ml|cc|g|bpm|ms|m/s|%|hz))",
    )
)
_BARRIER = re.compile(r"[。；;!?！？，,]|\.(?=\s)")
_PREPOSITION = re.compile(r"\b(?:on|in|at|on the)\s+$", re.IGNORECASE)
_HAN = re.compile("[\u3400-\u9fff]")
_REACH = 48  # characters around a date in which its context is looked for
_MAX_YEARS = 40  # a longer interval is an age rather than a finding's
_DAYS_PER_MONTH, _DAYS_PER_YEAR = 30.44, 365.25
_UNITS = {"day": "天", "week": "周", "month": "个月", "year": "年"}


@dataclass(frozen=True)
class _Moment:
    """A date as far as it was written: ``month`` and ``day`` may be unknown."""

    year: int
    month: int | None = None
    day: int | None = None


def with_intervals(text: str, study: datetime.date, rules: TextRules) -> tuple[str, int]:
    """``text`` with the dates of clinical events told relative to ``study``, and how many there were.

    A date that is ambiguous (05/04/2023), the study's own, or not a clinical event's stays, and is removed by
    the rules.
    """
    told = [(found, _told(text, found, study, rules)) for found in _dates(text)]
    pieces, last, count = [], 0, 0
    for found, phrase in told:
        if phrase is None:
            continue
        between = text[last : found.start()]
        before = _PREPOSITION.search(between)
        pieces += [between[: before.start()] if before else between, phrase]
        last, count = found.end(), count + 1
    return "".join((*pieces, text[last:])), count


def _dates(text: str) -> list[re.Match[str]]:
    """The dates in ``text`` in order, none within another: "4 May" is not looked for in "4 May 2023"."""
    found: list[re.Match[str]] = []
    for form in _FORMS:
        found += [
            one
            for one in form.finditer(text)
            if all(one.end() <= other.start() or other.end() <= one.start() for other in found)
        ]
    return sorted(found, key=lambda one: one.start())


def _told(text: str, found: re.Match[str], study: datetime.date, rules: TextRules) -> str | None:
    before = _BARRIER.split(text[max(0, found.start() - _REACH) : found.start()])[-1]
    after = _BARRIER.split(text[found.end() : found.end() + _REACH])[0]
    in_weeks = rules.weeks.search(before) is not None
    clinical = in_weeks or rules.before.search(before) or rules.after.match(after)
    if not clinical or rules.never.search(before):
        return None
    phrases = {_phrase(one, study, in_weeks, _HAN.search(text) is not None) for one in _moments(found, study)}
    return phrases.pop() if len(phrases) == 1 else None


def _moments(found: re.Match[str], study: datetime.date) -> Iterator[_Moment]:
    """Every way to read a date; none where it is not one."""
    parts = found.groupdict()
    if "a" in parts:
        year = int(parts["y"])
        if year < 100:
            year += 2000 if year + 2000 <= study.year + 1 else 1900
        first, second = int(parts["a"]), int(parts["b"])
        yield from (
            _Moment(year, month, day)
            for month, day in {(first, second), (second, first)}
            if _exists(year, month, day)
        )
        return
    word = parts.get("word")
    month = _MONTHS.index(word[:3].lower()) + 1 if word else int(parts.get("m") or 0) or None
    day = int(parts.get("d") or 0) or None
    if parts.get("y"):
        if day is None or _exists(int(parts["y"]), month or 0, day):
            yield _Moment(int(parts["y"]), month, day)
    elif month and day:  # without a year: the last one before the study
        past = [
            year
            for year in (study.year, study.year - 1)
            if _exists(year, month, day) and datetime.date(year, month, day) <= study
        ]
        if past:
            yield _Moment(past[0], month, day)


def _exists(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _phrase(moment: _Moment, study: datetime.date, in_weeks: bool, chinese: bool) -> str | None:
    """The interval in words, only as fine as the date was; None for the study's own time and for ages."""
    if moment.day and moment.month:
        days = (datetime.date(moment.year, moment.month, moment.day) - study).days
        parts = _of_days(abs(days), in_weeks)
    else:
        months = 12 * (moment.year - study.year) + (moment.month - study.month if moment.month else 0)
        days = round(months * _DAYS_PER_MONTH)
        exact = moment.month and abs(months) < 24
        parts = ((abs(months), "month"),) if exact else ((round(abs(months) / 12), "year"),)
    if not days or abs(days) > _MAX_YEARS * _DAYS_PER_YEAR:
        return None
    if chinese:
        return "".join(f"{count}{_UNITS[unit]}" for count, unit in parts) + ("前" if days < 0 else "后")
    words = " ".join(f"{count} {unit}{'s' if count != 1 else ''}" for count, unit in parts)
    return f"{words} {'earlier' if days < 0 else 'later'}"


def _of_days(days: int, in_weeks: bool) -> tuple[tuple[int, str], ...]:
    """An interval in the unit that a report would use; menstrual dates keep weeks and days."""
    if in_weeks and 7 <= days <= 45 * 7:
        return tuple((count, unit) for count, unit in ((days // 7, "week"), (days % 7, "day")) if count)
    if days < 14:
        return ((days, "day"),)
    if days < 60:
        return ((round(days / 7), "week"),)
    if days < 2 * _DAYS_PER_YEAR - 15:
        return ((round(days / _DAYS_PER_MONTH), "month"),)
    return ((round(days / _DAYS_PER_YEAR), "year"),)
