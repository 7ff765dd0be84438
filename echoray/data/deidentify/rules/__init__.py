"""The rules of de-identification as data files, one per language, checked when they are loaded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

from echoray.data.deidentify.rules.vocabulary import Vocabulary

# Machines mix both languages on one screen, so every rule holds for every text.
LANGUAGES = ("en", "zh")
WORD_EDGE = r"(?a:\b)"  # a word's edge among ASCII letters: in Chinese text a date borders on letters


class RuleFile(BaseModel):
    """Patterns by category: what is removed, and what may stay outside of the scan regions.

    Text that is made of ``words`` (literal, by category), numbers and ``units`` alone may stay as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deny: dict[str, tuple[str, ...]]
    allow: dict[str, tuple[str, ...]]
    words: dict[str, str]  # separated by spaces
    units: str = ""

    @field_validator("deny", "allow")
    @classmethod
    def _compiles(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for patterns in value.values():
            for pattern in patterns:
                re.compile(pattern)
        return value


@dataclass(frozen=True)
class Rules:
    """Compiled rules of all languages."""

    deny: tuple[tuple[str, re.Pattern[str]], ...]
    allow: tuple[tuple[str, re.Pattern[str]], ...]
    vocabulary: Vocabulary

    def denied(self, text: str) -> str | None:
        """The category of patient information that ``text`` shows, or None."""
        return _first(self.deny, text)

    def allowed(self, text: str) -> str | None:
        """The category for which ``text`` may stay, or None."""
        tight = re.sub(r"\s+", "", text)  # text readers part letters that stand apart
        return _first(self.allow, text.strip()) or _first(self.allow, tight) or self.vocabulary.category(text)


def rules_digest() -> str:
    """SHA-256 (hex) of the rule files' text: other rules make other studies."""
    names = [f"{kind}{language}.yaml" for kind in ("", "text_") for language in LANGUAGES]
    texts = (files(__package__).joinpath(name).read_bytes() for name in names)
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


@cache
def load_rules() -> Rules:
    """Read and compile the rule files of the package."""
    deny: list[tuple[str, re.Pattern[str]]] = []
    allow: list[tuple[str, re.Pattern[str]]] = []
    words: dict[str, str] = {}
    units: list[str] = []
    for language in LANGUAGES:
        content = files(__package__).joinpath(f"{language}.yaml").read_text(encoding="utf-8")
        rules = RuleFile.model_validate(yaml.safe_load(content))
        for target, source in ((deny, rules.deny), (allow, rules.allow)):
            target += [
                (category, re.compile(pattern.replace(r"\b", WORD_EDGE), re.IGNORECASE))
                for category, patterns in source.items()
                for pattern in patterns
            ]
        words |= {word.casefold(): kind for kind, line in rules.words.items() for word in line.split()}
        units += rules.units.split()
    return Rules(tuple(deny), tuple(allow), Vocabulary(words, units))


def _first(rules: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> str | None:
    return next((category for category, pattern in rules if pattern.search(text)), None)
