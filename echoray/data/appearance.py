"""Whether a frame looks like an ultrasound scan at all; in doubt it does.

The limits lie between what was measured on the real samples of installed packages and phantom frames on the
one side, and photographs, pages, charts and radiographs on the other. A magnetic resonance image or a CT on
black cannot be told from a scan by these means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoray.data.panels import Tissue, flat_areas, luma, small_copy

_NOISE_LIKENESS = 0.2  # correlation of neighbouring pixels; speckle has 0.65 and more
_ROW_STEP = 4  # every so many rows are looked at
_DARK = 12  # grey level
_DRAWN_LEVEL, _DRAWN = 30, 0.2  # flat and lit: a share of at most 0.08 in scans (a banner)
_WHITE_LEVEL, _WHITE = 150, 0.08  # flat and bright: never in scans
_COLOUR_LEVELS, _COLOUR = 40, 0.4  # spread of the channels; colour Doppler covers at most 0.1
_NO_SURROUND = 0.2  # share of dark pixels; a coloured scan has its black surround
_SMOOTH, _SMOOTH_SHARE = 0.06, 0.15  # local contrast of tissue; scans have 0.09 (a probe in air) and more
_TEXT_CONTRAST, _TEXT_SHARE = 0.8, 0.1  # strokes on black; a scan's own text covers 0.05


def is_noise(pixels_HW3: NDArray[np.uint8]) -> bool:
    """Whether neighbouring pixels know nothing of each other, as on a channel without signal."""
    rows_R = np.arange(0, len(pixels_HW3) - 1, _ROW_STEP)
    upper_RW, lower_RW = luma(pixels_HW3[rows_R]), luma(pixels_HW3[rows_R + 1])
    likeness = [
        float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
        for one, other in ((upper_RW, lower_RW), (upper_RW[:, 1:], upper_RW[:, :-1]))
    ]
    return max(likeness) < _NOISE_LIKENESS


def is_other_picture(pixels_HW3: NDArray[np.uint8], tissue: Tissue) -> bool:
    """Whether a frame is a photograph, a page, a chart or a picture of another modality."""
    small_HW3 = small_copy(pixels_HW3)
    grey_HW = luma(small_HW3)
    flat_HW = flat_areas(tissue.grey_HW)
    dark = float((grey_HW <= _DARK).mean())
    if (flat_HW & (grey_HW > _DRAWN_LEVEL)).mean() >= _DRAWN:
        return True
    if (flat_HW & (grey_HW > _WHITE_LEVEL)).mean() >= _WHITE:
        return True
    if dark < _NO_SURROUND and (np.ptp(small_HW3, axis=2) > _COLOUR_LEVELS).mean() >= _COLOUR:
        return True
    contrast = _local_contrast(grey_HW, tissue)
    if contrast >= _TEXT_CONTRAST:
        return 1 - dark >= _TEXT_SHARE
    return contrast < _SMOOTH and tissue.share >= _SMOOTH_SHARE


def _local_contrast(grey_HW: NDArray[np.uint8], tissue: Tissue) -> float:
    """Median over the tissue of standard deviation / mean within 5 x 5 pixels."""
    import cv2

    level_HW = grey_HW.astype(np.float32)
    mean_HW: Any = cv2.blur(level_HW, (5, 5))
    variance_HW: Any = cv2.blur(level_HW * level_HW, (5, 5)) - mean_HW * mean_HW
    contrast_HW = np.sqrt(np.maximum(variance_HW, 0)) / np.maximum(mean_HW, 1)
    found = contrast_HW[tissue.mask_HW > 0]
    return float(np.median(found)) if len(found) else 0.0
