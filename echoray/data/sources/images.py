"""PNG and JPEG files as frames."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg")


def is_image(path: str) -> bool:
    """Whether the name is a PNG's or a JPEG's."""
    return path.lower().endswith(SUFFIXES)


def decode_image(content: bytes) -> NDArray[np.uint8] | None:
    """RGB of shape (H, W, 3), upright, transparency on black; None where it is no sound PNG or JPEG."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged files make Pillow raise nearly anything
        return None
    if upright.mode.startswith("I"):
        return _grey(np.asarray(upright))
    if "A" in upright.mode or "transparency" in upright.info:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright.convert("RGBA"))
    return np.array(upright.convert("RGB"), np.uint8)


def _grey(deep_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16 bits stretched to the 8 of a frame, as DICOM's are; Pillow would cut them off at 255."""
    values = deep_HW.astype(np.float64)
    low, high = values.min(), values.max()
    grey = ((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
