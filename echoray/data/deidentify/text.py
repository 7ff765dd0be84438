"""Report text: sentences that only identify are dropped, identifying spans in clinical ones are cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from echoray.data.deidentify.rules import Rules

# A full stop ends a sentence unless it stands in a number, an initial or after a title.
_SENTENCE = re.compile(
    r"(?<=[。！？；])|(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bProf\.)(?<!\bNo\.)\s+(?=[^\d\s])"
)
_CLINICAL = re.compile(
    r"\b(echo|cyst|nodule|lesion|mass|plaque|normal|enlarged|shadow|flow|lobe|wall|measur|gland|parenchyma|"
    r"ventric|diameter|stenosis|fluid|unremarkable|calcif)|\d\s*(mm|cm)\b|"
    r"回声|囊肿|结节|肿块|斑块|正常|增大|声影|血流|实质|狭窄|积液",
    re.IGNORECASE,
)
_LEFTOVERS = (
    (re.compile(r"\(\s*[,;:]?\s*\)|（\s*[，；：]?\s*）"), ""),
    (re.compile(r"\s+([,.;:，。；：])"), r"\1"),
    (re.compile(r"([,，;；:：])(\s*[,，;；:：])+"), r"\1"),
    (re.compile(r"[ \t]{2,}"), " "),
)


@dataclass(frozen=True)
class RedactedText:
    """Text without patient information, and how many removals there were by category."""

    text: str
    removed: Mapping[str, int]


def redact_text(text: str, *, identifiers: Iterable[str], rules: Rules) -> RedactedText:
    """Remove names, numbers, dates, addresses, institutions and staff; measurements stay."""
    known = known_pattern(identifiers)
    removed: Counter[str] = Counter()
    kept = []
    for sentence in (part for part in _SENTENCE.split(text) if part and part.strip()):
        category = "known" if known and known.search(sentence) else rules.denied(sentence)
        if category is None:
            kept.append(sentence)
            continue
        removed[category] += 1
        if _CLINICAL.search(sentence):
            kept.append(_cut(sentence, known, rules))
    spaced = "".join(one if one[-1:] in "。！？；" else f"{one.strip()} " for one in kept)
    return RedactedText(spaced.strip(), dict(removed))


def known_pattern(identifiers: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the header's strings; short ASCII ones only as whole words in their own case."""
    parts = []
    for value in sorted(set(identifiers), key=len, reverse=True):
        escaped = re.escape(value)
        if not value.isascii():
            parts.append(escaped)
        elif len(value) <= 3:
            parts.append(rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])")
        else:
            parts.append(rf"(?i:(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9]))")
    return re.compile("|".join(parts)) if parts else None


def _cut(sentence: str, known: re.Pattern[str] | None, rules: Rules) -> str:
    if known:
        sentence = known.sub("", sentence)
    for _, pattern in rules.deny:
        sentence = pattern.sub("", sentence)
    for pattern, replacement in _LEFTOVERS:
        sentence = pattern.sub(replacement, sentence)
    return sentence
