"""From a clean frame to the picture that the model sees; training and serving share this one path."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

_CONTENT_LEVEL = 12  # grey levels above which a pixel counts as content


def model_picture(pixels_HW3: NDArray[np.uint8], size_px: int) -> bytes:
    """PNG of size_px x size_px: cut to the content, scaled with its aspect kept, centred on black."""
    from PIL import Image

    content = content_of(pixels_HW3)
    height, width = content.shape[:2]
    scale = size_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = Image.fromarray(content).resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size_px, size_px))
    canvas.paste(scaled, ((size_px - size[0]) // 2, (size_px - size[1]) // 2))
    return png(np.asarray(canvas))


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
