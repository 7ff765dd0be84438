"""How much of what identifies is removed from frames, and how much of what describes is kept.

Measured on labelled synthetic frames (``echoray.data.phantom.labelled``), glyph by glyph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.header import identifiers
from echoray.data.phantom.labelled import LabelledFrame, Mark, labelled_frame
from echoray.types import Progress

if TYPE_CHECKING:
    from echoray.data.phantom.identity import Identity

GROUPS = ("kind", "language", "style", "tag")
CONFIDENCE = 0.95
# A glyph (connected pixels of ink) is gone if at most this share of it looks as before, to so many levels.
_MAX_LEFT, _SAME_LEVELS = 0.3, 12
_VISIBLE_LEVELS = 16  # on average, from the pixels around the glyph
_MIN_GLYPH_PX = 6  # dots and commas say nothing
_MIN_KEPT = 0.98  # of a kept mark's pixels are the very same


@dataclass(frozen=True)
class Outcome:
    """One mark of one frame, and whether it fared as it should; its wording is deliberately absent."""

    overlay: int
    kind: str
    goes: bool
    good: bool
    language: str
    style: str
    tag: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Rate:
    """A share with its Wilson interval at ``CONFIDENCE``."""

    good: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """good / total; 1 of nothing."""
        return self.good / self.total if self.total else 1.0


@dataclass(frozen=True)
class AuditReport:
    """Recall of identifying marks, retention of the others, both in all and by ``GROUPS``."""

    num_overlays: int
    seed: int
    outcomes: tuple[Outcome, ...]

    def rate(self, *, goes: bool, **only: str) -> Rate:
        """Recall (``goes``) or retention of the marks with the given kind, language, style or tag."""
        return _rate(
            one.good
            for one in self.outcomes
            if one.goes == goes and all(getattr(one, name) == value for name, value in only.items())
        )

    def rows(self) -> Iterator[tuple[str, str, bool, Rate]]:
        """Group, its value, whether recall or retention, and the rate; only where there are marks."""
        for group in GROUPS:
            found = {(getattr(one, group), one.goes) for one in self.outcomes}
            for value, goes in sorted(found, key=lambda pair: (not pair[1], pair[0])):
                yield group, value, goes, self.rate(goes=goes, **{group: value})

    def as_dict(self) -> dict[str, Any]:
        """For audit.json: rates, and each mark that fared otherwise by overlay number, kind and box."""
        groups: dict[str, Any] = defaultdict(dict)
        for group, value, goes, rate in self.rows():
            groups[group].setdefault("recall" if goes else "retention", {})[value] = _as_dict(rate)
        return {
            "num_overlays": self.num_overlays,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "recall": _as_dict(self.rate(goes=True)),
            "retention": _as_dict(self.rate(goes=False)),
            "by": dict(groups),
            "missed": [asdict(one) for one in self.outcomes if not one.good],
        }


def run_audit(num_overlays: int, *, seed: int, progress: Progress | None = None) -> AuditReport:
    """De-identify ``num_overlays`` labelled frames as studies are and compare; about a second each."""
    deidentifier = Deidentifier()
    outcomes: list[Outcome] = []
    for index in range(num_overlays):
        one = labelled_frame(index, seed=seed)
        known = _header_strings(one.identity) if one.in_header else ()
        outcomes += mark_outcomes(index, one, deidentifier.clean_frame(one.frame, known).pixels)
        if progress is not None:
            progress("audit", index + 1, num_overlays)
    return AuditReport(num_overlays, seed, tuple(outcomes))


def mark_outcomes(index: int, one: LabelledFrame, clean_HW3: NDArray[np.uint8]) -> Iterator[Outcome]:
    """How each mark of a frame fared in ``clean_HW3``."""
    for mark in one.marks:
        good = (_gone if mark.goes else _kept)(mark, one.frame.pixels, clean_HW3)
        box = (mark.box.x0, mark.box.y0, mark.box.x1, mark.box.y1)
        yield Outcome(index, mark.kind, mark.goes, good, one.language, one.style, one.tag, box)


def _gone(mark: Mark, before_HW3: NDArray[np.uint8], after_HW3: NDArray[np.uint8]) -> bool:
    """Whether no glyph is left that looks as before and stands out from what is around it."""
    import cv2

    left_HW = (_change(mark, before_HW3, after_HW3) <= _SAME_LEVELS) & mark.ink_HW
    count, glyph_HW = cv2.connectedComponents(mark.ink_HW.astype(np.uint8), connectivity=8)
    area = np.s_[mark.box.y0 : mark.box.y1, mark.box.x0 : mark.box.x1]
    grey_HW = after_HW3[area].max(axis=2).astype(np.float32)
    for number in range(1, count):
        ink_HW = glyph_HW == number
        size = int(ink_HW.sum())
        if size < _MIN_GLYPH_PX or int((left_HW & ink_HW).sum()) <= _MAX_LEFT * size:
            continue
        ring_HW = cv2.dilate(ink_HW.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~mark.ink_HW
        if ring_HW.any() and abs(grey_HW[ink_HW].mean() - grey_HW[ring_HW].mean()) > _VISIBLE_LEVELS:
            return False
    return True


def _kept(mark: Mark, before_HW3: NDArray[np.uint8], after_HW3: NDArray[np.uint8]) -> bool:
    same = _change(mark, before_HW3, after_HW3)[mark.ink_HW] == 0
    return bool(same.mean() >= _MIN_KEPT)


def _change(mark: Mark, before_HW3: NDArray[np.uint8], after_HW3: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The largest difference of a channel in each pixel of the mark's box, (h, w)."""
    area = np.s_[mark.box.y0 : mark.box.y1, mark.box.x0 : mark.box.x1]
    change = np.abs(before_HW3[area].astype(np.int16) - after_HW3[area].astype(np.int16)).max(axis=2)
    return np.asarray(change, np.int16)


def _header_strings(who: Identity) -> tuple[str, ...]:
    """What the header of such a frame would hold, in the forms in which it is looked for."""
    from pydicom import Dataset

    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = who.patient.dicom_name, who.patient.patient_id
    dataset.PatientBirthDate = who.patient.birth_date.replace("-", "")
    dataset.StudyDate = who.visit.date.replace("-", "")
    dataset.InstitutionName, dataset.OperatorsName = who.visit.hospital, who.visit.operator
    dataset.ReferringPhysicianName = who.visit.doctor.replace(" ", "^")
    dataset.AccessionNumber = who.visit.accession
    return identifiers(dataset)


def _rate(outcomes: Iterable[bool]) -> Rate:
    from scipy.stats import binomtest

    found = list(outcomes)
    if not found:
        return Rate(0, 0, 0.0, 1.0)
    interval = binomtest(sum(found), len(found)).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(sum(found), len(found), float(interval.low), float(interval.high))


def _as_dict(rate: Rate) -> dict[str, float]:
    return {**asdict(rate), "value": rate.value}
