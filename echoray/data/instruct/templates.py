"""Exemplars, task instructions and guidance, from data files: ``exemplars/<system>.yaml`` and two more.

She et al., EchoVLM, section 3.1: 21 exemplar templates, three for each anatomical system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from echoray.config import digest
from echoray.data.conversations import NEGATION, RESERVED
from echoray.data.instruct.answers import occurs
from echoray.data.instruct.items import PARTS, Form, Part
from echoray.errors import ConfigError
from echoray.types import SYSTEMS, Language, Report, System

T = TypeVar("T")
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
PER_SYSTEM = 3
_CLAUSE = re.compile(r"(?<=[.;:])\s|,\s|[\n。；，：]")
Wordings = Annotated[tuple[Text, ...], Field(min_length=10)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Entry):
    """A question about the exemplar's report and its answer."""

    part: Part
    form: Form
    prompt: Text
    answer: Text


class Exemplar(_Entry):
    """A report in one language, and what may be asked about it."""

    findings: Text
    impression: Text
    examples: tuple[Example, ...]

    @property
    def report(self) -> Report:
        """The report."""
        return Report(self.findings, self.impression)

    @model_validator(mode="after")
    def _complete(self) -> Exemplar:
        parts = {one.part for one in self.examples}
        if missing := set(PARTS) - {"report"} - parts:
            raise ValueError(f"no example of {min(missing)}; expected one of each part but report")
        if {one.form for one in self.examples} != {"open", "closed"}:
            raise ValueError("expected examples of both forms, open and closed")
        for one in self.examples:
            within = Report("", self.impression) if one.part == "diagnosis" else self.report
            if one.form == "closed" and not occurs(one.answer, within):
                raise ValueError(f"the closed answer {one.answer!r} does not occur in the report")
            if RESERVED.search(one.prompt + one.answer):
                raise ValueError("an example holds a token of the chat format")
        return self


class Template(_Entry):
    """One situation of a system, as an examination in each language."""

    id: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)+$")]
    keywords: Mapping[Language, tuple[Text, ...]]
    en: Exemplar
    zh: Exemplar

    def exemplar(self, language: Language) -> Exemplar:
        """The exemplar in a language."""
        return self.en if language == "en" else self.zh

    def fits(self, report: Report, language: Language) -> int:
        """How many of the keywords a report holds."""
        text = report.text.lower()
        return sum(one.lower() in text for one in self.keywords[language])


class Guidance(_Entry):
    """What follows from a grade or a finding that a report states, part by part."""

    id: Text
    systems: tuple[System, ...]
    pattern: Mapping[Language, Text]  # regular expressions of how a report states it
    risk: Mapping[Language, Text] | None = None
    counseling: Mapping[Language, Text] | None = None
    surveillance: Mapping[Language, Text] | None = None
    treatment: Mapping[Language, Text] | None = None

    def stated(self, report: Report, language: Language) -> str:
        """The words in which the report states it; empty where it does not, or where it denies it."""
        for clause in _CLAUSE.split(report.text):
            found = re.search(self.pattern[language], clause, re.IGNORECASE)
            if found and not NEGATION.search(clause):
                return found[0].strip()
        return ""

    def answer(self, part: Part, language: Language) -> str | None:
        """What there is to say of one part, or None."""
        found: Mapping[Language, Text] | None = getattr(self, part, None)
        return found[language] if found else None

    @model_validator(mode="after")
    def _compiles(self) -> Guidance:
        for one in self.pattern.values():
            re.compile(one)
        return self


class _GuidanceFile(_Entry):
    questions: Mapping[Part, Mapping[Language, tuple[Text, ...]]]
    entries: tuple[Guidance, ...]


class _Instructions(_Entry):
    report: Mapping[Language, Wordings]
    diagnosis: Mapping[Language, Wordings]


@cache
def templates() -> Mapping[System, tuple[Template, ...]]:
    """The templates of each system."""
    return {one: read_templates(_text(f"exemplars/{one}.yaml"), one) for one in SYSTEMS}


def read_templates(text: str, system: System) -> tuple[Template, ...]:
    """The templates in a file's ``text``; ConfigError names the file and the field of a defect."""
    name = f"exemplars/{system}.yaml"
    found = _read(text, name, tuple[Template, ...])
    ids = [one.id for one in found]
    named = all(one.startswith(f"{system}-") for one in ids)
    if len(set(ids)) != PER_SYSTEM or len(ids) != PER_SYSTEM or not named:
        expected = f"{PER_SYSTEM} different ones, each beginning with {system}-"
        raise ConfigError(f"{name}: ids {', '.join(ids)}", hint=expected)
    return found


def template_for(system: System, language: Language, report: Report, rng: np.random.Generator) -> Template:
    """The template most of whose keywords a report holds; ``rng`` chooses among equal ones."""
    able = templates()[system]
    fits = [one.fits(report, language) for one in able]
    best = [one for one, fit in zip(able, fits, strict=True) if fit == max(fits)]
    return best[int(rng.integers(len(best)))]


def instructions(part: Literal["report", "diagnosis"], language: Language) -> tuple[str, ...]:
    """The wordings of a task."""
    found: Mapping[Language, Wordings] = getattr(_instructions(), part)
    return found[language]


def guidance(system: System, language: Language, report: Report) -> tuple[Guidance, ...]:
    """What follows from what a report of a system states."""
    entries = _guidance().entries
    return tuple(one for one in entries if system in one.systems and one.stated(report, language))


def guidance_questions(part: Part, language: Language) -> tuple[str, ...]:
    """How guidance on one part may be asked for."""
    return _guidance().questions[part][language]


@cache
def templates_digest() -> str:
    """Changes with any of the files."""
    exemplars = [one.model_dump(mode="json") for system in SYSTEMS for one in templates()[system]]
    others = [one.model_dump(mode="json") for one in (_instructions(), _guidance())]
    return digest([exemplars, *others])[:16]


@cache
def _instructions() -> _Instructions:
    return _read(_text("instructions.yaml"), "instructions.yaml", _Instructions)


@cache
def _guidance() -> _GuidanceFile:
    return _read(_text("guidance.yaml"), "guidance.yaml", _GuidanceFile)


def _text(name: str) -> str:
    return files("echoray.data.instruct").joinpath(name).read_text(encoding="utf-8")


def _read(text: str, name: str, kind: type[T]) -> T:
    try:
        value: Any = yaml.safe_load(text)
        found: T = TypeAdapter(kind).validate_python(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML ({type(error).__name__})", hint="mend the file") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{name}: {field}: {first['msg']}", hint="mend this entry of the file") from None
    return found
