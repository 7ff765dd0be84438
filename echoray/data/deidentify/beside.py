"""What scanners draw beside the scan without words: the depth axis' dashes and body marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from echoray.types import Box

# A depth axis: dashes (height, width in px) that stand alone beside a scan (share of the width). No
# character is that flat, and lines of interlaced text do not stand alone.
_TICK_MAX_PX, _TICK_LENGTH_PX, _TICK_GAP_PX, _AXIS_SHARE, _DARK = 2, (3, 24), 4, 0.05, 24
# A body mark: a thin outline around an area, larger than text (share of the height), alone on black. Codes
# and filled signs have too much ink, letters enclose too little or stand in a row.
_MARK_BRIGHT, _MARK_SHARE, _MARK_ASPECT, _MARK_INK, _MARK_ENCLOSED = 56, (0.045, 0.17), 2.5, 0.3, 0.35
_MARK_GAP, _MARK_JOIN_PX = 0.12, 3


def axis_dashes(pixels_HW3: NDArray[np.uint8], scan: Sequence[Box]) -> list[Box]:
    """The dashes of the depth axis beside the scan regions."""
    import cv2

    bright_HW = (pixels_HW3.max(axis=2) > _DARK).astype(np.uint8)
    beside_HW = np.zeros_like(bright_HW)
    reach = round(_AXIS_SHARE * bright_HW.shape[1])
    for box in scan:
        beside_HW[box.y0 : box.y1, max(0, box.x0 - reach) : box.x1 + reach] = 1
    for box in scan:
        beside_HW[box.y0 : box.y1, box.x0 : box.x1] = 0
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


def body_marks(
    pixels_HW3: NDArray[np.uint8], scan: Sequence[Box], texts: Iterable[Box], *, top: int
) -> list[Box]:
    """Small line drawings outside of the scan and below row ``top``, with no text in or at them."""
    import cv2

    height = pixels_HW3.shape[0]
    bright_HW = (pixels_HW3.max(axis=2) > _MARK_BRIGHT).astype(np.uint8)
    outside_HW = bright_HW.copy()
    for box in scan:
        outside_HW[box.y0 : box.y1, box.x0 : box.x1] = 0
    join = np.ones((_MARK_JOIN_PX, _MARK_JOIN_PX), np.uint8)
    joined_HW = cv2.morphologyEx(bright_HW, cv2.MORPH_CLOSE, join)
    _, _, stats, _ = cv2.connectedComponentsWithStats(joined_HW, connectivity=8)
    blocked = list(texts)
    found = []
    for x, y, w, h, _ in stats[1:].tolist():
        box = Box(x, y, x + w, y + h)
        sized = all(_MARK_SHARE[0] * height <= side <= _MARK_SHARE[1] * height for side in (w, h))
        if not sized or y < top or max(w, h) > _MARK_ASPECT * min(w, h):
            continue
        around = _around(box, round(_MARK_GAP * max(w, h)), bright_HW.shape)
        own = int(outside_HW[y : y + h, x : x + w].sum())
        alone = 0 < own == int(outside_HW[around].sum())
        if alone and not any(meet(box, text) for text in blocked) and _is_outline(bright_HW, joined_HW, box):
            found.append(box)
    return found


def _is_outline(bright_HW: NDArray[np.uint8], joined_HW: NDArray[np.uint8], box: Box) -> bool:
    """Whether a box holds little ink and its lines enclose much of it."""
    import cv2

    area = np.s_[box.y0 : box.y1, box.x0 : box.x1]
    size = (box.y1 - box.y0) * (box.x1 - box.x0)
    if bright_HW[area].sum() > _MARK_INK * size:
        return False
    walls_HW = np.pad(joined_HW[area], 1)
    cv2.floodFill(walls_HW, None, (0, 0), 2)
    return int((walls_HW == 0).sum()) >= _MARK_ENCLOSED * size


def _around(box: Box, gap: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    return (
        slice(max(0, box.y0 - gap), min(shape[0], box.y1 + gap)),
        slice(max(0, box.x0 - gap), min(shape[1], box.x1 + gap)),
    )


def meet(one: Box, other: Box) -> bool:
    """Whether two boxes share a pixel."""
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1
