"""De-identification of studies: header strings, report text, burned-in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from echoray.data.deidentify.cine import redact_cines
from echoray.data.deidentify.pixels import RapidTextReader, RedactedFrame, TextReader
from echoray.data.deidentify.rules import load_rules
from echoray.data.deidentify.text import known_pattern, redact_text
from echoray.data.deidentify.text_rules import load_text_rules
from echoray.types import Frame, Rejection, Report, Study, Turn

__all__ = ["Deidentifier"]


class Deidentifier:
    """Removes patient information from studies; holds the text reader and its cache, one per process."""

    def __init__(self, *, pixels: bool = True, reader: TextReader | None = None) -> None:
        self._rules, self._text_rules = load_rules(), load_text_rules()
        self._reader = reader if reader is not None or not pixels else RapidTextReader()

    def deidentify(self, study: Study) -> Study | Rejection:
        """The clean study, or why it cannot be cleaned ("text_residue", "empty_report")."""
        report, turns = self._report(study), self._turns(study)
        known = known_pattern(study.identifiers)
        texts = [
            *([report.text] if report else []),
            *(part for one in turns for part in (one.prompt, one.answer)),
        ]
        if known and any(known.search(text) for text in texts):
            return Rejection(study.study_hash, "deidentify", "text_residue")
        if report is not None and not report.text:
            return Rejection(study.study_hash, "deidentify", "empty_report")
        frames = tuple(one.frame for one in self.redact_frames(study.frames, study.identifiers))
        return replace(study, frames=frames, report=report, turns=turns, identifiers=(), date=None)

    def redact_frames(
        self, frames: Sequence[Frame], identifiers: tuple[str, ...]
    ) -> tuple[RedactedFrame, ...]:
        """A study's frames without burned-in patient information, and what was decided about their text.

        Where pixels are switched off the frames are as they were, without decisions.
        """
        if self._reader is None:
            return tuple(RedactedFrame(frame, ()) for frame in frames)
        return redact_cines(frames, self._reader, identifiers=identifiers, rules=self._rules)

    def clean_frame(self, frame: Frame, identifiers: tuple[str, ...]) -> Frame:
        """One frame without burned-in patient information (unchanged where pixels are switched off)."""
        return self.redact_frames((frame,), identifiers)[0].frame

    def _report(self, study: Study) -> Report | None:
        if study.report is None:
            return None
        return Report(self._text(study.report.findings, study), self._text(study.report.impression, study))

    def _turns(self, study: Study) -> tuple[Turn, ...]:
        """The imported turns, without those of which a question or an answer is not left."""
        turns = (
            Turn(one.task, self._text(one.prompt, study), self._text(one.answer, study))
            for one in study.turns
        )
        return tuple(one for one in turns if one.prompt and one.answer)

    def _text(self, text: str, study: Study) -> str:
        found = redact_text(
            text, identifiers=study.identifiers, rules=self._text_rules, study_date=study.date
        )
        return found.text
