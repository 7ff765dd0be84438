"""The generator without a model: the report's own words, and guidance for the grades that it states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from echoray.data.conversations import report_questions, study_rng
from echoray.data.instruct.answers import occurs
from echoray.data.instruct.items import Form, Item, Part, Provenance
from echoray.data.instruct.requests import Request, asking, seed_of
from echoray.data.instruct.templates import Guidance, guidance, guidance_questions, instructions
from echoray.types import Report, Study

REVISION = 1  # raise it when other items come of the same report
ReportPart = Literal["report", "diagnosis"]
_GUIDED: tuple[Part, ...] = ("risk", "counseling", "surveillance", "treatment")


def report_items(study: Study, report: Report, seed: int, origin: Provenance) -> Iterator[Item]:
    """The report and its impression as answers to one of many wordings of the task."""
    rng = study_rng(study.study_hash, seed)
    answers: tuple[tuple[ReportPart, str], ...] = (("report", report.text), ("diagnosis", report.impression))
    for part, answer in answers:
        wordings = instructions(part, study.language)
        prompt = wordings[int(rng.integers(len(wordings)))]
        if answer:
            yield _item(study, part, "closed", prompt, answer, "0", origin)


def rule_items(request: Request, limit: int, origin: Provenance) -> Iterator[Item]:
    """At most ``limit`` items of the request's form and parts."""
    made = _closed(request) if request.form == "closed" else _open(request)
    found = [one for one in made if one[0] in request.parts]
    rng = np.random.default_rng(request.seed)
    for number, index in enumerate(sorted(rng.permutation(len(found))[:limit])):
        part, prompt, answer = found[index]
        yield item_of(request, part, prompt, answer, number, origin)


def item_of(request: Request, part: Part, prompt: str, answer: str, number: int, origin: Provenance) -> Item:
    """An item that a request brought, with the id that follows from its place in the answer."""
    place = f"{number}-r{request.attempt}" if request.attempt else str(number)
    return _item(request.study, part, request.form, prompt, answer, place, origin)


def _item(
    study: Study, part: Part, form: Form, prompt: str, answer: str, place: str, origin: Provenance
) -> Item:
    assert study.system is not None
    item_id = f"{study.study_hash[:16]}-{form}-{part}-{place}"
    return Item(item_id, study.study_hash, study.system, study.language, part, form, prompt, answer, origin)


def _closed(request: Request) -> Iterator[tuple[Part, str, str]]:
    """Questions whose answers stand in the report."""
    for prompt, answer in report_questions(request.study):
        if occurs(answer, request.report):
            yield "interpretation", prompt, answer
    for one in _guidance(request):
        grade = one.stated(request.report, request.study.language)
        if one.risk is not None and occurs(grade, request.report):
            wordings = asking()[request.study.language]["grade_questions"]
            yield "risk", _one(request, one, wordings), grade


def _open(request: Request) -> Iterator[tuple[Part, str, str]]:
    """What the report implies without saying it in these words, and what guidelines say of its grade."""
    for prompt, answer in report_questions(request.study):
        if not occurs(answer, request.report):
            yield "interpretation", prompt, answer
    for one in _guidance(request):
        for part in _GUIDED:
            advice = one.answer(part, request.study.language)
            if advice is not None:
                wordings = guidance_questions(part, request.study.language)
                yield part, _one(request, one, wordings), advice


def _guidance(request: Request) -> Sequence[Guidance]:
    assert request.study.system is not None
    return guidance(request.study.system, request.study.language, request.report)


def _one(request: Request, source: Guidance, wordings: Sequence[str]) -> str:
    number = seed_of(request.seed, source.id, wordings[0])
    return wordings[number % len(wordings)]
