"""What is asked of which member about which study; decided by seed and study alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from echoray.config import digest
from echoray.config.instruct import InstructConfig, Member, deciding
from echoray.data.clean import study_of
from echoray.data.conversations import study_rng
from echoray.data.instruct.items import PARTS, Form, Part
from echoray.data.instruct.prescreen import Message
from echoray.data.instruct.templates import Template, template_for
from echoray.types import Language, Report, Study

TEXT_COLUMNS = (
    "study_hash", "patient_key", "system", "language", "source", "findings", "impression", "turns",
)  # fmt: skip
# Report and diagnosis are the report's own words: nobody is asked for them.
VQA_PARTS: tuple[Part, ...] = PARTS[2:]
_CLOSED_PARTS: tuple[Part, ...] = ("interpretation", "risk")


@dataclass(frozen=True)
class Round:
    """One round of generation; from the second on only what was suspended is made again.

    ``suspended`` are the sets, (model, template), that experts rejected in all rounds so far.
    """

    attempt: int = 0
    suspended: tuple[tuple[str, str], ...] = ()

    def excluded(self, template: str) -> frozenset[str]:
        """The models that are not asked about studies of a template any more."""
        return frozenset(model for model, name in self.suspended if name == template)


@dataclass(frozen=True)
class Request:
    """One request: a study, an exemplar, a form, and who answers it."""

    study: Study
    report: Report
    template: Template
    form: Form
    parts: tuple[Part, ...]
    member: Member
    seed: int
    attempt: int

    def asking_for(self, parts: Sequence[Part]) -> Request:
        """The same request for other parts."""
        return replace(self, parts=tuple(parts))

    def messages(self, number: int) -> list[Message]:
        """System and user message that ask for ``number`` items."""
        texts = asking()[self.study.language]
        exemplar = self.template.exemplar(self.study.language)
        shown = [one for one in exemplar.examples if one.form == self.form and one.part in self.parts]
        items = [{"part": one.part, "question": one.prompt, "answer": one.answer} for one in shown]
        material = {
            "example": {"report": exemplar.report.text, "items": items},
            "report": self.report.text,
            "parts": {part: texts["parts"][part] for part in self.parts},
            "number": number,
        }
        user = f"{texts[self.form]}\n{json.dumps(material, ensure_ascii=False, indent=1)}"
        return [{"role": "system", "content": texts["system"]}, {"role": "user", "content": user}]


def requests_of(row: Mapping[str, Any], config: InstructConfig, seed: int, turn: Round) -> Iterator[Request]:
    """The requests about a study (a row with ``TEXT_COLUMNS``); none about one without a report."""
    study = study_of(row)
    if study.report is None or study.system is None:
        return
    template = template_for(study.system, study.language, study.report, study_rng(study.study_hash, seed))
    forms: dict[Form, tuple[Part, ...]] = {"open": VQA_PARTS, "closed": _CLOSED_PARTS}
    for form, parts in forms.items():
        number = seed_of(seed, study.study_hash, form, turn.attempt)
        member = member_for(config.generators, number, turn.excluded(template.id))
        if member is not None:
            yield Request(study, study.report, template, form, parts, member, number, turn.attempt)


def member_for(members: Sequence[Member], number: int, excluded: frozenset[str]) -> Member | None:
    """Who answers a request with the seed ``number``: by weight, without the ``excluded`` models."""
    able = [one for one in members if one.model not in excluded]
    if not able:
        return None
    shares = np.cumsum([one.weight for one in able])
    return able[int(np.searchsorted(shares, number / 2**31 * shares[-1], side="right"))]


def seed_of(*names: object) -> int:
    """A seed below 2**31 that follows from ``names``."""
    text = " ".join(map(str, names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Asked:
    """A request as it is sent, the SHA-256 (hex) of that, and the name of its answer in the cache."""

    request: Request
    messages: list[Message]
    images: list[bytes]
    prompt: str
    key: str


def asked(request: Request, row: Mapping[str, Any], number: int) -> Asked:
    """The request for ``number`` items about the study of ``row``, with as many pictures as its member takes.

    The row has ``images`` (PNG) where the member sees pictures.
    """
    member = request.member
    messages = request.messages(number)
    images = [bytes(one) for one in row["images"][: member.max_images]] if member.max_images else []
    prompt = prompt_digest(messages, images)
    return Asked(request, messages, images, prompt, request_key(member, prompt, request.seed))


def prompt_digest(messages: Sequence[Message], images: Sequence[bytes]) -> str:
    """SHA-256 (hex) of what is sent."""
    return digest([list(messages), [hashlib.sha256(one).hexdigest() for one in images]])


def request_key(member: Member, prompt: str, seed: int) -> str:
    """The name of an answer in the cache: equal requests to an equally set member have one answer."""
    return digest([deciding(member), prompt, seed])[:32]


@cache
def asking() -> dict[Language, dict[str, Any]]:
    """The wording of requests by language."""
    texts: dict[Language, dict[str, Any]] = yaml.safe_load(
        files(__package__).joinpath("asking.yaml").read_text(encoding="utf-8")
    )
    return texts


def asking_digest() -> str:
    """Changes with the wording of requests."""
    return digest(asking())[:16]
