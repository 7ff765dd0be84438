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
TEXTURE = "texture"
_CACHE_LINES = 20_000
_MARGIN_PX = 2
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

        try:
            crops, found = self._engine.detect_and_crop(np.ascontiguousarray(pixels_HW3[..., ::-1]), {})
        except RapidOCRError:  # its way to say that there is no text
            return []
        keys = [hashlib.sha256(crop.tobytes() + str(crop.shape).encode()).digest() for crop in crops]
        fresh = {key: crop for key, crop in zip(keys, crops, strict=True) if key not in self._lines}
        if fresh:
            result = self._engine.recognize_txt(list(fresh.values()))
            self._lines.update(zip(fresh, zip(result.txts, result.scores, strict=True), strict=True))
        read = [
            ReadText(_box(corners), *self._lines[key]) for key, corners in zip(keys, found.boxes, strict=True)
        ]
        while len(self._lines) > _CACHE_LINES:
            self._lines.popitem(last=False)
        return read


def redact_frame(
    frame: Frame, texts: Iterable[ReadText], *, identifiers: Iterable[str], rules: Rules
) -> RedactedFrame:
    """Remove patient information from one frame.

    Outside of the scan regions everything is blanked and only allow-listed text is put back (default deny).
    Inside, text that names a patient, or that no rule knows, is filled from its surroundings. Without a
    regions tag, text in the banner area that cannot be read is filled as well (fail closed).
    """
    known = known_pattern(identifiers)
    scan = [region.box for region in frame.regions]
    height, width = frame.pixels.shape[:2]
    fill_HW = np.zeros((height, width), np.uint8)
    pixels = _blank_outside(frame.pixels, scan) if scan else frame.pixels.copy()
    boxes = []
    for one in texts:
        inside = _inside(one.box, scan, height)
        oversized = one.box.y1 - one.box.y0 > MAX_TEXT_SHARE * height
        category, kept = (TEXTURE, inside) if oversized else _decide(one, known, rules, inside=inside)
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
        return "known", False
    denied = rules.denied(text)
    if denied is not None:
        return denied, False
    trusted = one.score >= MIN_SCORE
    allowed = rules.allowed(text)
    if trusted and allowed is not None:
        return allowed, True
    if inside and (not trusted or len(re.sub(r"\W", "", text)) < 2):
        return TEXTURE, True  # speckle that looks like a character
    return ("unknown" if trusted else "unreadable"), False


def _inside(box: Box, scan: list[Box], height: int) -> bool:
    if scan:
        centre_y, centre_x = (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2
        return any(one.x0 <= centre_x < one.x1 and one.y0 <= centre_y < one.y1 for one in scan)
    return box.y0 >= BANNER_SHARE * height


def _touches(box: Box, scan: list[Box]) -> bool:
    return any(box.x0 < one.x1 and one.x0 < box.x1 and box.y0 < one.y1 and one.y0 < box.y1 for one in scan)


def _blank_outside(pixels_HW3: NDArray[np.uint8], scan: list[Box]) -> NDArray[np.uint8]:
    kept = np.zeros_like(pixels_HW3)
    for box in scan:
        kept[_slice(box)] = pixels_HW3[_slice(box)]
    return kept


def _filled(pixels_HW3: NDArray[np.uint8], fill_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(
        cv2.inpaint(np.ascontiguousarray(pixels_HW3), fill_HW, _INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
    )


def _box(corners_42: NDArray[np.float32]) -> Box:
    (x0, y0), (x1, y1) = corners_42.min(axis=0), corners_42.max(axis=0)
    return Box(int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1)))


def _grown(box: Box, width: int, height: int) -> Box:
    return Box(
        max(0, box.x0 - _MARGIN_PX),
        max(0, box.y0 - _MARGIN_PX),
        min(width, box.x1 + _MARGIN_PX),
        min(height, box.y1 + _MARGIN_PX),
    )


def _slice(box: Box) -> tuple[slice, slice]:
    return slice(box.y0, box.y1), slice(box.x0, box.x1)
