"""Token by token to text: whole characters only, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"  # what a decoder makes of a character whose bytes have not all arrived


class TextStream:
    """Detokenises one answer. Text that may be the beginning of a stop string is held back."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # ids[context:shown] are on display already; decoded again as context, since what a token reads as can
        # depend on the one before it.
        self._context = self._shown = 0
        self._held = ""
        self.stopped = False

    @property
    def num_tokens(self) -> int:
        """How many tokens were pushed."""
        return len(self._ids)

    def push(self, token_id: int) -> str:
        """Add a token; return the text that can be shown now (often empty)."""
        self._ids.append(token_id)
        piece = self._new_text()
        if piece.endswith(_INCOMPLETE):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return self._release(piece)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        rest = self._release(self._new_text().rstrip(_INCOMPLETE)) + self._held
        self._held = ""
        return rest

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._context : self._shown])
        return self._decode(self._ids[self._context :])[len(known) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [at for at in (text.find(one) for one in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, one) for one in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
