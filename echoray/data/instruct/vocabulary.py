"""The judges' words per language, read from ``judging_en.yaml`` and ``judging_zh.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from echoray.config import digest
from echoray.types import Language

Pattern = re.Pattern[str]


class VocabularyFile(BaseModel):
    """One language's file; every value is a regular expression, or such by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    findings: dict[str, str]
    echogenicity: dict[str, str]
    sides: dict[str, str]
    sentence: str
    clause: str
    negation: str
    denied_after: str
    qualified: str
    hypothetical: str
    presupposed_before: str
    presupposed_after: str
    threshold_before: str
    threshold_after: str
    no_word: str
    yes_word: str
    question: str
    refusal: str
    unsafe: dict[str, tuple[str, ...]]
    unsafe_negation: str


@dataclass(frozen=True)
class Vocabulary:
    """Compiled patterns; see the YAML files for what each is."""

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
    words = VocabularyFile.model_validate(yaml.safe_load(_content(language)))
    values: dict[str, object] = {}
    for name, value in words:
        if isinstance(value, str):
            values[name] = _compiled(value)
        else:
            parts = {key: one if isinstance(one, str) else "|".join(one) for key, one in value.items()}
            values[name] = {key: _compiled(one) for key, one in parts.items()}
    return Vocabulary(**values)  # type: ignore[arg-type]


def vocabulary_digest() -> str:
    """Changes whenever a rule judge may come to another verdict by its words."""
    return digest([_content("en"), _content("zh")])[:16]


def _content(language: Language) -> str:
    return files("echoray.data.instruct").joinpath(f"judging_{language}.yaml").read_text(encoding="utf-8")


def _compiled(pattern: str) -> Pattern:
    return re.compile(pattern, re.IGNORECASE)
