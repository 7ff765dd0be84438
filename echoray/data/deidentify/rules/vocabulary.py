"""Text that consists of known words, numbers and units only: what machines and examiners write, no names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FILLER = "filler"  # the category of words that say nothing by themselves
_GLUED = 4  # letters from which on a word may stand without a space, as text readers lose them
_CAPITAL = r"(?-i:(?<=[a-z])(?=[A-Z]))"  # "AbdGen"
_NUMBER = r"(?<![\d.,])\d{1,4}(?:[.,]\d{1,3})?(?!\d)"
_SIGNS = r"[\s:;,./|=<>+×*·~_()#°⁻²³'\-]"


class Vocabulary:
    """Words by category; ``category`` is that of the first word, of a measurement where only a unit tells."""

    def __init__(self, words: Mapping[str, str], units: Iterable[str]) -> None:
        self._kinds = dict(words)
        known = sorted(self._kinds, key=len, reverse=True)
        amounts = "|".join(map(_spaced, sorted(units, key=len, reverse=True)))
        self._token = re.compile(
            rf"(?P<amount>{_NUMBER}\s?(?:{amounts})(?![A-Za-z])[23]?)"
            rf"|(?P<word>{'|'.join(map(_pattern, known))})"
            rf"|(?P<unit>(?<![A-Za-z])(?:{amounts})(?![A-Za-z]))"
            rf"|(?P<number>{_NUMBER})|(?P<sign>{_SIGNS})",
            re.IGNORECASE,
        )

    def category(self, text: str) -> str | None:
        """The category of a text of known words alone, or None; numbers by themselves say nothing."""
        place, found = 0, None
        while place < len(text):
            token = self._token.match(text, place)
            if token is None or token.end() == place:
                return None
            place = token.end()
            if token.lastgroup == "amount":
                found = found or "measurement"
            elif token.lastgroup == "word":
                kind = self._kinds[token.group().casefold()]
                found = found or (None if kind == FILLER else kind)
        return found


def _spaced(unit: str) -> str:
    """Text readers part letters that stand apart: "m m"."""
    return r"\s?".join(map(re.escape, unit))


def _pattern(word: str) -> str:
    """Short words in Latin letters must stand alone, or begin with a capital: a name may begin with one."""
    escaped = re.escape(word)
    if not word.isascii() or len(word) >= _GLUED:
        return escaped
    return rf"(?:(?<![A-Za-z])|{_CAPITAL}){escaped}(?:(?![A-Za-z])|{_CAPITAL})"
