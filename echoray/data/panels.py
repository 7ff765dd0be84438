"""Where a frame shows tissue, and whether it shows it in two panels, by its pixels alone.

Legend: H, W of a copy of the frame whose longer side is at most 384 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]  # 0 or 1

SIDE_PX = 384
_LIT = 10  # grey levels above the surround, from which a pixel may be tissue
_FAINT = 4
_BRIGHTEST_SURROUND = 40
_FLAT = 2  # grey levels within 5 x 5 pixels; less is drawn by software, not received by a probe
_BAR_SHARE, _BAR_LEVELS = 0.5, 9  # a row of a banner: half its width within nine grey levels
_BAR_EDGE_PX = 4
_TEXT_PX = 11  # wider than a stroke or a line of text of the copy, narrower than any scan
_SPECK = 0.004  # share of the frame; a smaller island is no part of a scan
_ISLAND = 0.02  # the same, of the largest island

_BRIDGE = 0.02  # share of the height that may cross a gutter (a tick, a caption)
_LESSER_PART = 0.25  # share of all tissue that lies on either side of a gutter
_ALIKE = 0.8  # least ratio of the panels' heights, of their widths, and of their shared rows to the taller
_SAME_OUTLINE = 0.85  # intersection over union of the convex hulls, scaled to one size
_PANEL = 0.03  # share of the frame
_GUTTER_LEVEL = 40  # the darkest line through the gutter is darker from end to end


@dataclass(frozen=True)
class Tissue:
    """The smoothed grey levels of a frame's copy, and which pixels of it show tissue."""

    grey_HW: NDArray[np.uint8]
    mask_HW: Mask
    empty: bool  # nothing wider than text is lit, however faintly

    @property
    def share(self) -> float:
        """Of the frame's area."""
        return float(self.mask_HW.mean())

    def turned(self) -> Tissue:
        """Rows and columns exchanged."""
        grey_WH, mask_WH = (np.ascontiguousarray(one.T) for one in (self.grey_HW, self.mask_HW))
        return Tissue(grey_WH, mask_WH, self.empty)


def find_tissue(pixels_HW3: NDArray[np.uint8]) -> Tissue:
    """What is neither black, flat, banner nor text. Thin and small things go; nothing is said about noise."""
    import cv2

    grey_HW = luma(small_copy(pixels_HW3))
    # Luma rather than the brightest channel: JPEG halves the resolution of colour, which smears it out.
    grey_HW = cv2.medianBlur(grey_HW, 3)
    smooth_HW = cv2.medianBlur(grey_HW, 5)
    surround = float(np.percentile(smooth_HW, 10))
    lit = _LIT + (int(surround) if surround < _BRIGHTEST_SURROUND else 0)
    rows = _inside_bars(smooth_HW, lit)
    mask_HW, faint_HW = np.zeros_like(grey_HW), np.zeros_like(grey_HW)
    mask_HW[rows] = ((smooth_HW > lit) & ~flat_areas(grey_HW))[rows]
    faint_HW[rows] = (smooth_HW > _FAINT)[rows]
    faint_HW = cv2.morphologyEx(faint_HW, cv2.MORPH_OPEN, _square(_TEXT_PX))
    mask_HW = cv2.morphologyEx(mask_HW, cv2.MORPH_CLOSE, _square(5))
    mask_HW = cv2.morphologyEx(mask_HW, cv2.MORPH_OPEN, _square(_TEXT_PX))
    return Tissue(grey_HW, _without_specks(mask_HW), float(faint_HW.mean()) < _SPECK)


def shows_two_panels(tissue: Tissue) -> bool:
    """Whether a dark gutter parts two areas of tissue of the same outline, beside or above each other.

    A shadow or a vessel across the whole scan is dark too, but what lies on its two sides differs in outline
    and extent. Panels that touch, or whose gutter is below 1.5% of the longer side, are not told apart.
    """
    return any(_like_panels(one, *parts) for one in (tissue, tissue.turned()) for parts in _parted(one))


def small_copy(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame with its longer side at ``SIDE_PX`` or below, in colour."""
    import cv2

    scale = SIDE_PX / max(pixels_HW3.shape[:2])
    if scale >= 1:
        return pixels_HW3
    small: Any = cv2.resize(pixels_HW3, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return small


def luma(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey levels (H, W)."""
    import cv2

    grey: Any = cv2.cvtColor(np.ascontiguousarray(pixels_HW3), cv2.COLOR_RGB2GRAY)
    return grey


def flat_areas(grey_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose neighbours all have nearly their level."""
    import cv2

    spread: NDArray[np.uint8] = cv2.subtract(cv2.dilate(grey_HW, _square(5)), cv2.erode(grey_HW, _square(5)))
    return spread <= _FLAT


def _square(side: int) -> Mask:
    return np.ones((side, side), np.uint8)


def _inside_bars(smooth_HW: NDArray[np.uint8], lit: int) -> slice:
    """The rows between a coloured bar with its text at the top and one at the bottom.

    Each may take up to a quarter of the height; a row of one has half its width within a few grey levels.
    """
    height, width = smooth_HW.shape
    levels = 256 + _BAR_LEVELS
    cells = np.arange(height)[:, None] * levels + smooth_HW + (_BAR_LEVELS // 2 + 1)
    counts = np.bincount(cells.ravel(), minlength=height * levels).reshape(height, levels)
    below = counts.cumsum(axis=1)
    near = below[:, _BAR_LEVELS:] - below[:, :-_BAR_LEVELS]  # of each row, pixels around each level
    rows = np.flatnonzero(near[:, lit + 1 :].max(axis=1) >= _BAR_SHARE * width)
    top, bottom = rows[rows < height // 4], rows[rows >= height - height // 4]
    first = int(top[-1]) + 1 + _BAR_EDGE_PX if len(top) else 0
    return slice(first, max(first, int(bottom[0]) - _BAR_EDGE_PX) if len(bottom) else height)


def _without_specks(mask_HW: Mask) -> Mask:
    import cv2

    _, labels_HW, stats, _ = cv2.connectedComponentsWithStats(mask_HW)
    areas = stats[:, cv2.CC_STAT_AREA]
    kept = areas >= max(_SPECK * mask_HW.size, _ISLAND * areas[1:].max(initial=0))
    kept[0] = False
    return kept[labels_HW].astype(np.uint8)


def _parted(tissue: Tissue) -> Iterator[tuple[int, int]]:
    """First and last column (exclusive) of each gutter: a run of columns with next to no tissue."""
    mask_HW = tissue.mask_HW
    rows = np.flatnonzero(mask_HW.any(axis=1))
    if not len(rows):
        return
    counts_W = mask_HW.sum(axis=0, dtype=np.int64)
    left_W = counts_W.cumsum() / counts_W.sum()
    empty_W = counts_W <= _BRIDGE * (rows[-1] + 1 - rows[0])
    edges = np.flatnonzero(np.diff(empty_W.astype(np.int8), prepend=0, append=0))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if start and _LESSER_PART <= left_W[start] <= 1 - _LESSER_PART:
            yield start, stop


def _like_panels(tissue: Tissue, start: int, stop: int) -> bool:
    """Whether what lies left and right of the gutter has one outline and the gutter is dark."""
    (top, hull), (other_top, other_hull) = _hull(tissue.mask_HW[:, :start]), _hull(tissue.mask_HW[:, stop:])
    sizes = np.array([hull.shape, other_hull.shape])
    first, last = max(top, other_top), min(top + len(hull), other_top + len(other_hull))
    alike = (*(sizes.min(axis=0) / sizes.max(axis=0)), (last - first) / sizes[:, 0].max())
    if min(alike) < _ALIKE or min(hull.sum(), other_hull.sum()) < _PANEL * tissue.mask_HW.size:
        return False
    gutter = tissue.grey_HW[first:last, start:stop]
    if np.percentile(gutter, 95, axis=0).min() > _GUTTER_LEVEL:
        return False
    return _overlap(hull, other_hull) >= _SAME_OUTLINE


def _hull(mask_HW: Mask) -> tuple[int, Mask]:
    """The convex hull of a part, cut to its bounds, and the row at which it begins."""
    import cv2

    points: Any = cv2.findNonZero(np.ascontiguousarray(mask_HW))
    filled: Any = np.zeros_like(mask_HW)
    cv2.fillConvexPoly(filled, cv2.convexHull(points), 1)
    left, top, width, height = cv2.boundingRect(points)
    return top, filled[top : top + height, left : left + width]


def _overlap(one: Mask, other: Mask) -> float:
    """Intersection over union, ``other`` scaled to the size of ``one``."""
    import cv2

    other = cv2.resize(other, one.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return float((one & other).sum() / (one | other).sum())
