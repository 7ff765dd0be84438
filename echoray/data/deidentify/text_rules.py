"""The rules for report text: those that hold for burned-in text as well, and more that need sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from echoray.data.deidentify import rules as shared

_FOLDER = shared.__name__
_MACRO = re.compile(r"<([A-Z_]+)>")


class ClinicalDates(BaseModel):
    """Patterns around a date that make it that of a clinical event; ``never`` outweighs the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: tuple[str, ...]
    weeks: tuple[str, ...]  # like ``before``; such intervals are told in weeks and days
    after: tuple[str, ...]
    never: tuple[str, ...]


class TextRuleFile(BaseModel):
    """One language's file; ``macros`` are named parts of the patterns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    macros: dict[str, str]
    deny: dict[str, tuple[str, ...]]
    clinical: tuple[str, ...]
    clinical_dates: ClinicalDates


@dataclass(frozen=True)
class TextRules:
    """Compiled rules of all languages; ``weeks``, ``before``, ``after`` and ``never`` are about dates."""

    deny: tuple[tuple[str, re.Pattern[str]], ...]
    clinical: re.Pattern[str]
    before: re.Pattern[str]
    weeks: re.Pattern[str]
    after: re.Pattern[str]
    never: re.Pattern[str]

    def denied(self, text: str) -> str | None:
        """The category of patient information that ``text`` shows, or None."""
        return next((category for category, pattern in self.deny if pattern.search(text)), None)


@cache
def load_text_rules() -> TextRules:
    """Read and compile ``text_en.yaml`` and ``text_zh.yaml``, before the rules for all text."""
    deny: list[tuple[str, re.Pattern[str]]] = []
    clinical: list[str] = []
    cues: dict[str, list[str]] = {name: [] for name in ClinicalDates.model_fields}
    for language in shared.LANGUAGES:
        content = files(_FOLDER).joinpath(f"text_{language}.yaml").read_text(encoding="utf-8")
        rules = TextRuleFile.model_validate(yaml.safe_load(content))
        for category, patterns in rules.deny.items():
            deny += [(category, _compiled(pattern, rules.macros)) for pattern in patterns]
        clinical += rules.clinical
        for name, found in cues.items():
            found += getattr(rules.clinical_dates, name)
    return TextRules(
        deny=(*deny, *shared.load_rules().deny),
        clinical=_compiled("|".join(clinical), {}),
        **{name: _compiled("|".join(f"(?:{one})" for one in found), {}) for name, found in cues.items()},
    )


def _compiled(pattern: str, macros: dict[str, str]) -> re.Pattern[str]:
    while _MACRO.search(pattern):
        pattern = _MACRO.sub(lambda found: macros[found[1]], pattern)
    return re.compile(pattern.replace(r"\b", shared.WORD_EDGE), re.IGNORECASE)
