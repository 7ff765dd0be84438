"""The judges' words per language, read from ``judging_en.yaml`` and ``judging_zh.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

from echoray.config import digest
from echoray.types import Language


def _compiled(pattern: object) -> object:
    """A pattern, or the alternatives of one, compiled."""
    if isinstance(pattern, str | list):
        return re.compile(pattern if isinstance(pattern, str) else "|".join(pattern), re.IGNORECASE)
    return pattern


Pattern = Annotated[re.Pattern[str], BeforeValidator(_compiled)]


class Vocabulary(BaseModel):
    """One language's patterns; see the YAML files for what each is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    findings: Mapping[str, Pattern]
    echogenicity: Mapping[str, Pattern]
    sides: Mapping[str, Pattern]
    sentence: Pattern
    clause: Pattern
    negation: Pattern
    denied_after: Pattern
    qualified: Pattern
    hypothetical: Pattern
    presupposed_before: Pattern
    presupposed_after: Pattern
    threshold_before: Pattern
    threshold_after: Pattern
    no_word: Pattern
    yes_word: Pattern
    question: Pattern
    refusal: Pattern
    unsafe: Mapping[str, Pattern]
    unsafe_negation: Pattern

    def sentences(self, text: str) -> list[str]:
        """The sentences of a text that are not blank."""
        return [one for one in self.sentence.split(text) if one.strip()]


@cache
def vocabulary(language: Language) -> Vocabulary:
    """Read and compile a language's file."""
    return Vocabulary.model_validate(yaml.safe_load(_content(language)))


def vocabulary_digest() -> str:
    """Changes whenever a rule judge may come to another verdict by its words."""
    return digest([_content("en"), _content("zh")])[:16]


def _content(language: Language) -> str:
    return files("echoray.data.instruct").joinpath(f"judging_{language}.yaml").read_text(encoding="utf-8")
