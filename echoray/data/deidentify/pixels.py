"""Burned-in text: found, read, classified; patient information removed, measurements and labels kept.

The redefined desensitisation of She et al., EchoVLM, Appendix A and Figure 4.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from echoray.data.deidentify.rules import Rules
from echoray.data.deidentify.text import known_pattern
from echoray.types import Box, Frame

MIN_SCORE = 0.6  # below this the reading is not trusted
BANNER_SHARE = 0.15  # of the height, at the top, where no regions tag tells
MAX_TEXT_SHARE = 0.1  # of the height; anything taller is a scan's edge, not a line of text
_MAX_CHANCE_CHARS = 3  # speckle and scan edges read as one character; whatever is longer was written
TEXTURE, KNOWN = "texture", "known"
_CACHE_LINES = 20_000
_MARGIN_PX = 2
_BORDER_PX = 16  # black around the picture: the detector misses text at its very edge
# A depth axis: dashes (height, width in px) that stand alone beside a scan (share of the width). No character
# is that flat, and lines of interlaced text do not stand alone.
_TICK_MAX_PX, _TICK_LENGTH_PX, _TICK_GAP_PX, _AXIS_SHARE, _DARK = 2, (3, 24), 4, 0.05, 24
_INPAINT_RADIUS_PX = 3


@dataclass(frozen=True)
class ReadText:
    """A piece of burned-in text as the reader saw it; ``score`` is the reader's confidence in [0, 1]."""

    box: Box
    text: str
    score: float


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


class TextReader(Protocol):
    """Finds and reads text in a picture (H, W, 3)."""

    def read(self, pixels_HW3: NDArray[np.uint8]) -> list[ReadText]:
        """Every piece of text found, trusted or not."""
        ...


class RapidTextReader:
    """RapidOCR on one thread at the picture's own resolution, with a cache of lines that were read before.

    Detection runs on every frame: a known layout says nothing about the text in it.
    """

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        settings: dict[str, Any] = {
            "Global.use_cls": False,
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            # Never scale up to the default 736 px, which triples the time, and never down.
            "Det.limit_type": "max",
            "Det.limit_side_len": 4096,
        }
        self._engine: Any = RapidOCR(params=settings)
        self._lines: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def read(self, pixels_HW3: NDArray[np.uint8]) -> list[ReadText]:
        """Text with its box; an empty list where nothing looks like text."""
        from rapidocr.main import RapidOCRError

        edge = (_BORDER_PX, _BORDER_PX)
        padded = np.pad(pixels_HW3[..., ::-1], (edge, edge, (0, 0)))
        try:
            crops, found = self._engine.detect_and_crop(padded, {})
        except RapidOCRError:  # its way to say that there is no text
            return []
        keys = [hashlib.sha256(crop.tobytes() + str(crop.shape).encode()).digest() for crop in crops]
        fresh = {key: crop for key, crop in zip(keys, crops, strict=True) if key not in self._lines}
        if fresh:
            result = self._engine.recognize_txt(list(fresh.values()))
            self._lines.update(zip(fresh, zip(result.txts, result.scores, strict=True), strict=True))
        height, width = pixels_HW3.shape[:2]
        boxes = [_box(corners - _BORDER_PX, width, height) for corners in found.boxes]
        read = [ReadText(box, *self._lines[key]) for key, box in zip(keys, boxes, strict=True)]
        while len(self._lines) > _CACHE_LINES:
            self._lines.popitem(last=False)
        return read


def redact_frame(
    frame: Frame, texts: Iterable[ReadText], *, identifiers: Iterable[str], rules: Rules
) -> RedactedFrame:
    """Remove patient information from one frame.

    Outside of the scan regions everything is blanked and only allow-listed text and the depth axis' dashes
    are put back (default deny).
    Inside, text that names a patient, or that no rule knows, is filled from its surroundings, and so is text
    that cannot be read unless it is no longer than what speckle shows by chance (fail closed): a region may
    cover the whole frame, banner and all. Without a regions tag, nothing unreadable stays in the banner area.
    """
    known = known_pattern(identifiers)
    scan = [region.box for region in frame.regions]
    height, width = frame.pixels.shape[:2]
    fill_HW = np.zeros((height, width), np.uint8)
    pixels = _blank_outside(frame.pixels, scan) if scan else frame.pixels.copy()
    boxes = []
    for one in texts:
        inside = _inside(one.box, scan, height)
        category, kept = _decide(one, known, rules, inside=inside)
        oversized = one.box.y1 - one.box.y0 > MAX_TEXT_SHARE * height
        if oversized and _by_chance(one.text):
            category, kept = TEXTURE, inside if scan else _below_banner(one.box, height)
        boxes.append(TextBox(one.box, category, kept))
    for box in boxes:
        if scan and box.kept and box.category != TEXTURE:
            area = _slice(_grown(box.box, width, height))
            pixels[area] = frame.pixels[area]
    for box in boxes:  # after what is kept, so that a kept neighbour never brings patient text back
        if not box.kept:
            area = _slice(_grown(box.box, width, height))
            if not scan or _touches(box.box, scan):
                fill_HW[area] = 1
            else:
                pixels[area] = 0
    if fill_HW.any():
        pixels = _filled(pixels, fill_HW)
    return RedactedFrame(Frame(pixels, frame.regions), tuple(boxes))


def _decide(one: ReadText, known: re.Pattern[str] | None, rules: Rules, *, inside: bool) -> tuple[str, bool]:
    text = one.text.strip()
    if known and (known.search(text) or known.search(re.sub(r"\s+", "", text))):
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
    return ("unknown" if trusted else "unreadable"), False


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def _by_chance(text: str) -> bool:
    return len(_letters(text)) <= _MAX_CHANCE_CHARS


def _inside(box: Box, scan: list[Box], height: int) -> bool:
    if scan:
        centre_y, centre_x = (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2
        return any(one.x0 <= centre_x < one.x1 and one.y0 <= centre_y < one.y1 for one in scan)
    return box.y0 >= BANNER_SHARE * height


def _below_banner(box: Box, height: int) -> bool:
    return box.y0 + box.y1 >= 2 * BANNER_SHARE * height


def _touches(box: Box, scan: list[Box]) -> bool:
    return any(box.x0 < one.x1 and one.x0 < box.x1 and box.y0 < one.y1 and one.y0 < box.y1 for one in scan)


def _blank_outside(pixels_HW3: NDArray[np.uint8], scan: list[Box]) -> NDArray[np.uint8]:
    kept = np.zeros_like(pixels_HW3)
    for box in scan:
        kept[_slice(box)] = pixels_HW3[_slice(box)]
    for tick in _ticks(pixels_HW3, scan):
        kept[_slice(tick)] = pixels_HW3[_slice(tick)]
    return kept


def _ticks(pixels_HW3: NDArray[np.uint8], scan: list[Box]) -> list[Box]:
    """The dashes of the depth axis beside the scan regions."""
    import cv2

    bright_HW = (pixels_HW3.max(axis=2) > _DARK).astype(np.uint8)
    beside_HW = np.zeros_like(bright_HW)
    reach = round(_AXIS_SHARE * bright_HW.shape[1])
    for box in scan:
        beside_HW[box.y0 : box.y1, max(0, box.x0 - reach) : box.x1 + reach] = 1
    for box in scan:
        beside_HW[_slice(box)] = 0
    _, _, stats, _ = cv2.connectedComponentsWithStats(bright_HW * beside_HW, connectivity=8)
    found = []
    for x, y, w, h, _ in stats[1:].tolist():
        if h > _TICK_MAX_PX or not _TICK_LENGTH_PX[0] <= w <= _TICK_LENGTH_PX[1]:
            continue
        rows = slice(max(0, y - _TICK_GAP_PX), y + h + _TICK_GAP_PX)
        around = bright_HW[rows, max(0, x - 1) : x + w + 1]
        if around.sum() == bright_HW[y : y + h, x : x + w].sum():
            found.append(Box(x, y, x + w, y + h))
    return found


def _filled(pixels_HW3: NDArray[np.uint8], fill_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(
        cv2.inpaint(np.ascontiguousarray(pixels_HW3), fill_HW, _INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
    )


def _box(corners_42: NDArray[np.float32], width: int, height: int) -> Box:
    limits = np.array((width, height))
    first = np.clip(np.floor(corners_42.min(axis=0)), 0, limits).astype(int)
    last = np.clip(np.ceil(corners_42.max(axis=0)), 0, limits).astype(int)
    return Box(int(first[0]), int(first[1]), int(last[0]), int(last[1]))


def _grown(box: Box, width: int, height: int) -> Box:
    return Box(
        max(0, box.x0 - _MARGIN_PX),
        max(0, box.y0 - _MARGIN_PX),
        min(width, box.x1 + _MARGIN_PX),
        min(height, box.y1 + _MARGIN_PX),
    )


def _slice(box: Box) -> tuple[slice, slice]:
    return slice(box.y0, box.y1), slice(box.x0, box.x1)
