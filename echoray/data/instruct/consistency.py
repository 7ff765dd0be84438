"""Does an answer agree with the report? Measurements, findings, sides, risk grades, echogenicity.

Each check returns a few words on what is wrong, or None. They find contradictions in what both texts say
plainly and leave open what either leaves open: a rejected good item costs little, but the report, not the
rules, is the truth about a study.
"""

from __future__ import annotations

from echoray.data.instruct.claims import Claim, claims, echogenicities, grades, measurements, sides
from echoray.data.instruct.items import Part
from echoray.data.instruct.prescreen import Case
from echoray.data.instruct.vocabulary import Vocabulary, vocabulary

# Parts whose answers describe this study; advice may name numbers and findings that guidelines have.
_DESCRIBING: frozenset[Part] = frozenset(("report", "diagnosis", "interpretation", "risk"))
_REPORTING: frozenset[Part] = frozenset(("report", "diagnosis", "interpretation"))
# Findings that a report does not leave out where they are there.
_SPECIFIC = frozenset((
    "stone", "calcification", "thrombus", "effusion", "ascites", "hydronephrosis", "plaque", "fibroid",
))  # fmt: skip


def measurement_not_in_report(case: Case) -> str | None:
    """A number with its unit that the report does not have (in another unit, or less precise, it may)."""
    if case.item.part not in _DESCRIBING:
        return None
    words = _words(case)
    known = measurements(case.report.text, words, limits=True)
    for one in measurements(case.item.answer, words, limits=False):
        if not any(one.is_of(other) for other in known):
            return one.text
    return None


def finding_contradicted(case: Case) -> str | None:
    """A finding that the answer affirms and the report only denies, or the other way round."""
    reported: dict[str, set[bool]] = {}
    for one in claims(case.report.text, _words(case)):
        reported.setdefault(one.finding, set()).add(one.affirmed)
    for one in _answered(case):
        if not one.hypothetical and reported.get(one.finding) == {not one.affirmed}:
            return f"{one.finding} {'affirmed' if one.affirmed else 'denied'}"
    return None


def finding_not_reported(case: Case) -> str | None:
    """A specific finding that the answer affirms and the report never names."""
    if case.item.part not in _REPORTING:
        return None
    words = _words(case)
    for one in _answered(case):
        named = words.findings[one.finding].search(case.report.text)
        if one.affirmed and not one.hypothetical and one.finding in _SPECIFIC and not named:
            return one.finding
    return None


def side_contradicted(case: Case) -> str | None:
    """A finding on the side on which the report does not have it, or a side that the report never names."""
    words = _words(case)
    reported = [one for one in claims(case.report.text, words) if one.affirmed and one.sides]
    for one in _answered(case):
        places = {side for other in reported if other.finding == one.finding for side in other.sides}
        if one.affirmed and len(one.sides) == 1 and places and not one.sides <= places:
            return f"{one.finding} {next(iter(one.sides))}"
    named, known = sides(case.item.answer, words), sides(case.report.text, words)
    if len(named) == len(known) == 1 and named != known:
        return next(iter(named))
    return None


def grade_contradicted(case: Case) -> str | None:
    """A risk grade other than the report's; a coarser one (4 for 4a) agrees."""
    reported = grades(case.report.text)
    for scheme, found in grades(case.item.answer).items():
        known = reported.get(scheme, found)
        if not any(one in known or any(other.startswith(one) for other in known) for one in found):
            return f"{scheme}-RADS {min(found)}"
    return None


def echogenicity_contradicted(case: Case) -> str | None:
    """An echogenicity that the report, which names others, does not name."""
    if case.item.part not in _DESCRIBING:
        return None
    words = _words(case)
    known = echogenicities(case.report.text, words)
    strange = echogenicities(case.item.answer, words) - known
    return min(strange) if known and strange else None


def _answered(case: Case) -> list[Claim]:
    """What the answer claims; a bare yes or no, or a bare side, claims it of what the question names."""
    words, item = _words(case), case.item
    made = list(claims(item.answer, words))
    if made:
        return made
    named, asked = frozenset(sides(item.answer, words)), list(claims(item.prompt, words))
    affirmed = not words.no_word.match(item.answer)
    if not affirmed or words.yes_word.match(item.answer):
        named = named or frozenset(sides(item.prompt, words))
        asked = [one for one in asked if not one.presupposed]
    elif not named:
        return []
    findings = {one.finding for one in asked}
    return [Claim(findings.pop(), affirmed, named, hypothetical=False)] if len(findings) == 1 else []


def _words(case: Case) -> Vocabulary:
    return vocabulary(case.item.language)
