"""De-identification of studies: header strings, report text, burned-in text."""

from __future__ import annotations

from dataclasses import replace

from echoray.data.deidentify.pixels import RapidTextReader, TextReader, redact_frame
from echoray.data.deidentify.rules import load_rules
from echoray.data.deidentify.text import known_pattern, redact_text
from echoray.types import Frame, Rejection, Report, Study

__all__ = ["Deidentifier"]


class Deidentifier:
    """Removes patient information from studies; holds the text reader and its cache, one per process."""

    def __init__(self, *, pixels: bool = True, reader: TextReader | None = None) -> None:
        self._rules = load_rules()
        self._reader = reader if reader is not None or not pixels else RapidTextReader()

    def deidentify(self, study: Study) -> Study | Rejection:
        """The clean study, or why it cannot be cleaned ("text_residue", "empty_report")."""
        report = self._report(study)
        if report is not None:
            known = known_pattern(study.identifiers)
            if known and known.search(report.text):
                return Rejection(study.study_hash, "deidentify", "text_residue")
            if not report.text:
                return Rejection(study.study_hash, "deidentify", "empty_report")
        frames = tuple(self.clean_frame(frame, study.identifiers) for frame in study.frames)
        return replace(study, frames=frames, report=report, identifiers=())

    def clean_frame(self, frame: Frame, identifiers: tuple[str, ...]) -> Frame:
        """One frame without burned-in patient information (unchanged where pixels are switched off)."""
        if self._reader is None:
            return frame
        texts = self._reader.read(frame.pixels)
        return redact_frame(frame, texts, identifiers=identifiers, rules=self._rules).frame

    def _report(self, study: Study) -> Report | None:
        if study.report is None:
            return None
        findings, impression = (
            redact_text(part, identifiers=study.identifiers, rules=self._rules).text
            for part in (study.report.findings, study.report.impression)
        )
        return Report(findings, impression)
