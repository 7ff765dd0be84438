"""From a clean frame to the picture that the model sees; training and serving share this one path."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray

from echoray.data.batch import MERGE, PATCH_PX
from echoray.types import ImageLayout

CELL_PX = PATCH_PX * MERGE  # one image token
_CONTENT_LEVEL = 12  # grey levels above which a pixel counts as content
_MIN_CELLS = 4  # Qwen2-VL's processor enlarges what is smaller
_MAX_ASPECT = 8  # of a grid; content that is narrower still stands on black


def model_picture(pixels_HW3: NDArray[np.uint8], size_px: int, layout: ImageLayout) -> bytes:
    """PNG of at most size_px**2 pixels with sides that are multiples of 28, so that no processor resizes it.

    Cut to the content, scaled with its aspect kept and centred on black. "dynamic": on the grid of cells that
    shows the content largest but not enlarged, of such the smallest; "square": on size_px x size_px.
    """
    from PIL import Image

    content = content_of(pixels_HW3)
    height, width = content.shape[:2]
    rows, columns = _grid(height, width, size_px, layout)
    # The scale times height times width: an integer, so that no rounding decides between grids.
    fit = _fit(rows, columns, height, width, layout)
    # Rounded up, so that the picture of a picture has the same grid.
    size = (-(-fit // height), -(-fit // width))
    scaled = Image.fromarray(content).resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (columns * CELL_PX, rows * CELL_PX))
    canvas.paste(scaled, ((canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2))
    return png(np.asarray(canvas))


def _grid(height: int, width: int, size_px: int, layout: ImageLayout) -> tuple[int, int]:
    """Rows and columns of cells for content of ``height`` x ``width`` pixels."""
    side = size_px // CELL_PX
    if layout == "square":
        return side, side

    def worth(grid: tuple[int, int]) -> tuple[int, int, int]:
        rows, columns = grid
        return _fit(rows, columns, height, width, layout), -rows * columns, -abs(rows - columns)

    return max(_grids(side**2), key=worth)


@cache
def _grids(max_cells: int) -> tuple[tuple[int, int], ...]:
    return tuple(
        (rows, columns)
        for rows in range(1, max_cells + 1)
        for columns in range(1, max_cells // rows + 1)
        if rows * columns >= _MIN_CELLS and max(rows, columns) <= _MAX_ASPECT * min(rows, columns)
    )


def _fit(rows: int, columns: int, height: int, width: int, layout: ImageLayout) -> int:
    """The largest scale at which the content fits the grid, times height times width."""
    fit = CELL_PX * min(rows * width, columns * height)
    return fit if layout == "square" else min(fit, height * width)


def content_of(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The smallest rectangle that holds every pixel brighter than the black border; all of a black frame."""
    bright_HW = pixels_HW3.max(axis=2) > _CONTENT_LEVEL
    rows, columns = np.flatnonzero(bright_HW.any(1)), np.flatnonzero(bright_HW.any(0))
    if not len(rows):
        return pixels_HW3
    return pixels_HW3[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def png(pixels_HW3: NDArray[np.uint8]) -> bytes:
    """Lossless PNG of an RGB picture."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HW3)).save(target, "PNG", compress_level=3)
    return target.getvalue()
