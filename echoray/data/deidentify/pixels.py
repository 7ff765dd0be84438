"""Burned-in text: found, read, classified; patient information removed, measurements and labels kept.

The redefined desensitisation of She et al., EchoVLM, Appendix A and Figure 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echoray.data.deidentify.beside import axis_dashes, body_marks, meet
from echoray.data.deidentify.reader import RapidTextReader, ReadText, TextReader
from echoray.data.deidentify.rules import Rules
from echoray.data.deidentify.text import known_pattern
from echoray.types import Box, Frame

__all__ = ["RapidTextReader", "ReadText", "RedactedFrame", "TextBox", "TextReader", "redact_frame"]

MIN_SCORE = 0.6  # below this the reading is not trusted
BANNER_SHARE = 0.15  # of the height, at the top, where no regions tag tells
MAX_TEXT_SHARE = 0.1  # of the height; anything taller is a scan's edge, not a line of text
_MAX_CHANCE_CHARS = 3  # speckle and scan edges read as one character; whatever is longer was written
TEXTURE, KNOWN, BODY_MARK = "texture", "known", "body_mark"
_UNKNOWN, _UNREADABLE = "unknown", "unreadable"
_MARGIN_PX = 2
_INPAINT_RADIUS_PX = 3
_MAX_COMMON = 0.5  # of the lower box's height: neighbours' boxes overlap by less, the same text's by more
_FLAT_LEVELS = 40  # a row between two lines of text varies by less
# Ink of one text: its colour to so many levels, with gaps of that share of the box's height, over at most
# that many heights beyond the box.
_INK_LEVELS, _MAX_GAP, _MAX_RUN = 48, 0.3, 1.5
_SHORT = 3  # letters of initials
_RINGS = re.compile("[0OoCDQ]{0,3}")  # as which the ovals of a drawing are read


@dataclass(frozen=True)
class TextBox:
    """What was decided about a piece of text; its wording is deliberately not kept."""

    box: Box
    category: str
    kept: bool


@dataclass(frozen=True)
class RedactedFrame:
    """A frame without patient information and the decision about every piece of text in it."""

    frame: Frame
    boxes: tuple[TextBox, ...]


def redact_frame(
    frame: Frame,
    texts: Iterable[ReadText],
    *,
    identifiers: Iterable[str],
    rules: Rules,
    also: Sequence[Box] = (),
) -> RedactedFrame:
    """Remove patient information, and whatever is in the boxes ``also``, from one frame.

    Outside of the scan regions everything is blanked and only allow-listed text, the depth axis' dashes and
    body marks are put back (default deny).
    Inside, text that names a patient, or that no rule knows, is filled from its surroundings, and so is text
    that cannot be read unless it is no longer than what speckle shows by chance (fail closed): a region may
    cover the whole frame, banner and all. Without a regions tag, nothing unreadable stays in the banner area.
    """
    boxes = decide(frame, texts, identifiers=identifiers, rules=rules)
    scan = [region.box for region in frame.regions]
    source = frame.pixels
    pixels = _blank_outside(source, scan, boxes) if scan else source.copy()
    removed = [one.box for one in boxes if not one.kept] + list(also)
    kept = [one.box for one in boxes if one.kept and one.category != TEXTURE]
    gone_HW = _removal(source, removed, kept)  # after what is kept: it never brings patient text back
    if scan:
        outside_HW = np.ones_like(gone_HW)
        for box in scan:
            outside_HW[_slice(box)] = False
        pixels[gone_HW & outside_HW] = 0
        gone_HW &= ~outside_HW
    if gone_HW.any():
        pixels = _filled(pixels, gone_HW)
    return RedactedFrame(replace(frame, pixels=pixels), tuple(boxes))


def decide(
    frame: Frame, texts: Iterable[ReadText], *, identifiers: Iterable[str], rules: Rules
) -> list[TextBox]:
    """The decision about every piece of text in a frame, and about its body marks."""
    identifiers = tuple(identifiers)
    known = known_pattern(identifiers)
    initials = frozenset(_letters(one).casefold() for one in identifiers if 0 < len(_letters(one)) <= _SHORT)
    scan = [region.box for region in frame.regions]
    height = frame.pixels.shape[0]
    read = list(texts)
    boxes = []
    for one in read:
        inside = _inside(one.box, scan, height)
        category, kept = _decide(one, known, initials, rules, inside=inside)
        oversized = one.box.y1 - one.box.y0 > MAX_TEXT_SHARE * height
        if oversized and _by_chance(one.text):
            category, kept = TEXTURE, inside if scan else _below_banner(one.box, height)
        boxes.append(TextBox(one.box, category, kept))
    rows = _identity_rows(read, boxes)
    for number, (one, box) in enumerate(zip(read, boxes, strict=True)):
        if box.kept and _may_be_initials(one) and _in_rows(one.box, rows):
            boxes[number] = replace(box, category=_UNKNOWN, kept=False)
    if scan:
        boxes = _with_body_marks(frame, scan, read, boxes)
    return boxes


def _with_body_marks(
    frame: Frame, scan: Sequence[Box], read: Sequence[ReadText], boxes: Sequence[TextBox]
) -> list[TextBox]:
    """The body marks as well, and without what was found in them that reads as rings or nothing certain."""
    empty = [
        bool(_RINGS.fullmatch(_letters(one.text))) or (one.score < MIN_SCORE and _by_chance(one.text))
        for one in read
    ]
    texts = [box.box for box, nothing in zip(boxes, empty, strict=True) if not box.kept and not nothing]
    top = round(BANNER_SHARE * frame.pixels.shape[0])
    marks = body_marks(frame.pixels, scan, texts, top=top)
    others = [
        box
        for box, nothing in zip(boxes, empty, strict=True)
        if not (nothing and any(meet(box.box, mark) for mark in marks))
    ]
    return others + [TextBox(mark, BODY_MARK, True) for mark in marks]


def _decide(
    one: ReadText, known: re.Pattern[str] | None, initials: frozenset[str], rules: Rules, *, inside: bool
) -> tuple[str, bool]:
    text = one.text.strip()
    if known and (known.search(text) or known.search(re.sub(r"\s+", "", text))):
        return KNOWN, False
    if _letters(text).casefold() in initials:
        return KNOWN, False
    denied = rules.denied(text)
    if denied is not None:
        return denied, False
    trusted = one.score >= MIN_SCORE
    allowed = rules.allowed(text)
    if trusted and allowed is not None:
        return allowed, True
    if inside and _by_chance(text) and (not trusted or len(_letters(text)) < 2):
        return TEXTURE, True  # speckle that looks like a character
    return (_UNKNOWN if trusted else _UNREADABLE), False


def _identity_rows(read: Sequence[ReadText], boxes: Sequence[TextBox]) -> list[tuple[float, float]]:
    """Rows (first, last) with text that surely identifies, and as much again above and below."""
    rows = []
    for one, box in zip(read, boxes, strict=True):
        sure = one.score >= MIN_SCORE and len(_letters(one.text)) > _SHORT
        if sure and not box.kept and box.category not in (_UNKNOWN, _UNREADABLE):
            margin = 0.8 * (one.box.y1 - one.box.y0)
            rows.append((one.box.y0 - margin, one.box.y1 + margin))
    return rows


def _in_rows(box: Box, rows: Sequence[tuple[float, float]]) -> bool:
    return any(first < (box.y0 + box.y1) / 2 < last for first, last in rows)


def _may_be_initials(one: ReadText) -> bool:
    """Up to three capitals, also a single one: readers part initials at their dots."""
    letters = _letters(one.text)
    capitals = letters.isascii() and letters.isalpha() and letters.isupper()
    return one.score >= MIN_SCORE and capitals and len(letters) <= _SHORT


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text)


def _by_chance(text: str) -> bool:
    return len(_letters(text)) <= _MAX_CHANCE_CHARS


def _inside(box: Box, scan: Sequence[Box], height: int) -> bool:
    if scan:
        centre_y, centre_x = (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2
        return any(one.x0 <= centre_x < one.x1 and one.y0 <= centre_y < one.y1 for one in scan)
    return box.y0 >= BANNER_SHARE * height


def _below_banner(box: Box, height: int) -> bool:
    return box.y0 + box.y1 >= 2 * BANNER_SHARE * height


def _blank_outside(
    pixels_HW3: NDArray[np.uint8], scan: Sequence[Box], boxes: Iterable[TextBox]
) -> NDArray[np.uint8]:
    """Only the scan, the axis' dashes and what was decided to stay; black elsewhere."""
    height, width = pixels_HW3.shape[:2]
    kept = [_grown(one.box, width, height) for one in boxes if one.kept and one.category != TEXTURE]
    shown_HW = np.zeros((height, width), bool)
    for box in (*scan, *axis_dashes(pixels_HW3, scan), *kept):
        shown_HW[_slice(box)] = True
    return np.where(shown_HW[..., None], pixels_HW3, np.uint8(0))


def _removal(pixels_HW3: NDArray[np.uint8], removed: Sequence[Box], kept: Sequence[Box]) -> NDArray[np.bool_]:
    """The pixels (H, W) of the removed boxes, less what belongs to a neighbouring line that is kept."""
    height, width = pixels_HW3.shape[:2]
    gone_HW = np.zeros((height, width), bool)
    for box in removed:
        grown = _grown(_to_the_end(pixels_HW3, box), width, height)
        own_HW = np.ones((grown.y1 - grown.y0, grown.x1 - grown.x0), bool)
        for other in kept:
            spared = _spared(pixels_HW3, grown, other)
            if spared is not None:
                own_HW[
                    spared.y0 - grown.y0 : spared.y1 - grown.y0, spared.x0 - grown.x0 : spared.x1 - grown.x0
                ] = False
        gone_HW[_slice(grown)] |= own_HW
    return gone_HW


def _to_the_end(pixels_HW3: NDArray[np.uint8], box: Box) -> Box:
    """The box, longer where ink of its colour goes on: a reader's box may end before its text does."""
    inside = pixels_HW3[_slice(box)].reshape(-1, 3).astype(np.int16)
    ground = np.median(inside, axis=0)
    far = np.abs(inside - ground).max(axis=1) > _INK_LEVELS
    if not far.any():
        return box
    colour = np.median(inside[far], axis=0)
    height = box.y1 - box.y0
    reach = round(_MAX_RUN * height)
    first, last = max(0, box.x0 - reach), min(pixels_HW3.shape[1], box.x1 + reach)
    strip = pixels_HW3[box.y0 : box.y1, first:last].astype(np.int16)
    ink = (np.abs(strip - colour).max(axis=2) < _INK_LEVELS) & (
        np.abs(strip - ground).max(axis=2) > _INK_LEVELS
    )
    columns = first + np.flatnonzero(ink.any(axis=0))
    x0, x1 = box.x0, box.x1
    gap = _MAX_GAP * height
    for column in columns[columns >= box.x1]:
        if column - x1 > gap:
            break
        x1 = int(column) + 1
    for column in columns[columns < box.x0][::-1]:
        if x0 - column > gap:
            break
        x0 = int(column)
    return replace(box, x0=x0, x1=x1)


def _spared(pixels_HW3: NDArray[np.uint8], removed: Box, kept: Box) -> Box | None:
    """The part of the removed box that is the kept one's, beyond the blank row or column between their texts.

    None where they are apart, where they share too much to be neighbours, or where nothing blank parts them.
    """
    both = Box(
        max(removed.x0, kept.x0), max(removed.y0, kept.y0), min(removed.x1, kept.x1), min(removed.y1, kept.y1)
    )
    if both.x0 >= both.x1 or both.y0 >= both.y1:
        return None
    lower = min(removed.y1 - removed.y0, kept.y1 - kept.y0)
    levels = pixels_HW3[_slice(both)].max(axis=2).astype(np.int16)
    if both.y1 - both.y0 <= _MAX_COMMON * lower:
        blank = _blank_line(levels)
        if blank is None:
            return None
        if removed.y0 + removed.y1 < kept.y0 + kept.y1:
            return replace(both, y0=both.y0 + blank)
        return replace(both, y1=both.y0 + blank)
    if both.x1 - both.x0 <= lower:
        blank = _blank_line(levels.T)
        if blank is None:
            return None
        if removed.x0 + removed.x1 < kept.x0 + kept.x1:
            return replace(both, x0=both.x0 + blank)
        return replace(both, x1=both.x0 + blank)
    return None


def _blank_line(levels: NDArray[np.int16]) -> int | None:
    """The blank row nearest to the middle, or None."""
    flat = np.flatnonzero(levels.max(axis=1) - levels.min(axis=1) < _FLAT_LEVELS)
    return int(flat[np.abs(flat - levels.shape[0] / 2).argmin()]) if len(flat) else None


def _filled(pixels_HW3: NDArray[np.uint8], gone_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    import cv2

    source = np.ascontiguousarray(pixels_HW3)
    mask = gone_HW.astype(np.uint8)
    return np.asarray(cv2.inpaint(source, mask, _INPAINT_RADIUS_PX, cv2.INPAINT_TELEA))


def _grown(box: Box, width: int, height: int) -> Box:
    return Box(
        max(0, box.x0 - _MARGIN_PX),
        max(0, box.y0 - _MARGIN_PX),
        min(width, box.x1 + _MARGIN_PX),
        min(height, box.y1 + _MARGIN_PX),
    )


def _slice(box: Box) -> tuple[slice, slice]:
    return slice(box.y0, box.y1), slice(box.x0, box.x1)
