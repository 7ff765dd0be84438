"""Finds and reads burned-in text, on one thread and at the picture's own resolution."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from echoray.types import Box

_CACHE_LINES = 20_000
_BORDER_PX = 16  # black around the picture: the detector misses text at its very edge
# A lone character on black, which the detector often misses: least and largest height, widest against its
# height, the share of its box that is bright, and how far around it nothing is.
_BRIGHT, _LONE_PX, _LONE_ASPECT, _LONE_INK, _LONE_RING_PX = 56, 6, 3.0, (0.1, 0.9), 3
_LONE_HEIGHT_SHARE, _LONE_TALLEST_PX = 0.06, 24  # the larger one holds: a part of a frame may be small
_MAX_LONE, _LONE_MIN_SCORE = 80, 0.9  # speckle looks like characters to a reader that is told to see one
_LINE_MARGIN_PX = 4


@dataclass(frozen=True)
class ReadText:
    """A piece of burned-in text as the reader saw it; ``score`` is the reader's confidence in [0, 1]."""

    box: Box
    text: str
    score: float


class TextReader(Protocol):
    """Finds and reads text in a picture (H, W, 3)."""

    def read(self, pixels_HW3: NDArray[np.uint8]) -> list[ReadText]:
        """Every piece of text found, trusted or not."""
        ...


class RapidTextReader:
    """RapidOCR with a cache of lines that were read before.

    Detection runs on every picture: a known layout says nothing about the text in it. A line is looked up by
    all of its pixels and read alone, so that what it says depends on nothing that was read before or with it.
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
            "Rec.rec_batch_num": 1,
        }
        self._engine: Any = RapidOCR(params=settings)
        self._lines: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def read(self, pixels_HW3: NDArray[np.uint8]) -> list[ReadText]:
        """Text with its box; an empty list where nothing looks like text."""
        crops, boxes = self._detect(pixels_HW3)
        lone = _lone_characters(pixels_HW3, boxes)
        lines = self._recognise([*crops, *(_crop(pixels_HW3, box) for box in lone)])
        read = [ReadText(box, *line) for box, line in zip((*boxes, *lone), lines, strict=True)]
        return read[: len(boxes)] + [one for one in read[len(boxes) :] if one.score >= _LONE_MIN_SCORE]

    def _detect(self, pixels_HW3: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], list[Box]]:
        """Upright crops (BGR) of what looks like text, and their boxes."""
        from rapidocr.main import RapidOCRError

        height, width = pixels_HW3.shape[:2]
        edge = (_BORDER_PX, _BORDER_PX)
        try:
            crops, found = self._engine.detect_and_crop(
                np.pad(pixels_HW3[..., ::-1], (edge, edge, (0, 0))), {}
            )
        except RapidOCRError:  # its way to say that there is no text
            return [], []
        return list(crops), [_box(corners - _BORDER_PX, width, height) for corners in found.boxes]

    def _recognise(self, crops: Sequence[NDArray[np.uint8]]) -> list[tuple[str, float]]:
        keys = [hashlib.sha256(crop.tobytes() + str(crop.shape).encode()).digest() for crop in crops]
        fresh = {key: crop for key, crop in zip(keys, crops, strict=True) if key not in self._lines}
        if fresh:
            result = self._engine.recognize_txt(list(fresh.values()))
            self._lines.update(zip(fresh, zip(result.txts, result.scores, strict=True), strict=True))
        lines = [self._lines[key] for key in keys]
        while len(self._lines) > _CACHE_LINES:
            self._lines.popitem(last=False)
        return lines


def _box(corners_42: NDArray[np.float32], width: int, height: int) -> Box:
    limits = np.array((width, height))
    first = np.clip(np.floor(corners_42.min(axis=0)), 0, limits).astype(int)
    last = np.clip(np.ceil(corners_42.max(axis=0)), 0, limits).astype(int)
    return Box(int(first[0]), int(first[1]), int(last[0]), int(last[1]))


def _crop(pixels_HW3: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    edge = (_LINE_MARGIN_PX, _LINE_MARGIN_PX)
    inner = pixels_HW3[box.y0 : box.y1, box.x0 : box.x1, ::-1]
    return np.ascontiguousarray(np.pad(inner, (edge, edge, (0, 0))))


def _lone_characters(pixels_HW3: NDArray[np.uint8], found: Sequence[Box]) -> list[Box]:
    """Boxes of one to three characters that stand alone on black and that the detector did not find."""
    import cv2

    bright_HW = (pixels_HW3.max(axis=2) > _BRIGHT).astype(np.uint8)
    free_HW = bright_HW.copy()
    tallest = max(_LONE_TALLEST_PX, _LONE_HEIGHT_SHARE * pixels_HW3.shape[0])
    for box in found:
        if box.y1 - box.y0 <= 2 * tallest:  # else it is no line of text, and may hide one
            free_HW[box.y0 : box.y1, box.x0 : box.x1] = 0
    joined_HW = cv2.morphologyEx(free_HW, cv2.MORPH_CLOSE, np.ones((3, 2 * _LONE_RING_PX + 1), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(joined_HW, connectivity=8)
    boxes = []
    for x, y, w, h, _ in stats[1:].tolist():
        if not (_LONE_PX <= h <= tallest and 0.2 * h <= w <= _LONE_ASPECT * h):
            continue
        ink = int(free_HW[y : y + h, x : x + w].sum())
        ring = bright_HW[
            max(0, y - _LONE_RING_PX) : y + h + _LONE_RING_PX,
            max(0, x - _LONE_RING_PX) : x + w + _LONE_RING_PX,
        ]
        if _LONE_INK[0] * w * h <= ink <= _LONE_INK[1] * w * h and int(ring.sum()) == ink:
            boxes.append(Box(x, y, x + w, y + h))
    return boxes[:_MAX_LONE]
