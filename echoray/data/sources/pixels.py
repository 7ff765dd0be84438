"""The pixels of a DICOM image as RGB; a frame looks the same in whatever choice of frames it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

Range = tuple[float, float]  # values shown as 0 and as 255


def to_rgb(dataset: Dataset, frames: Sequence[int]) -> NDArray[np.uint8]:
    """The named frames as (N, H, W, 3) uint8: palettes applied, YBR converted, more than 8 bits scaled.

    Only these are decoded, but for 16-bit grey without a window: its range is that of the whole cine.
    """
    from pydicom.pixels import iter_pixels

    # Three samples per pixel come out as RGB, in planes or not. One by one: pydicom 3.0 loses its place after
    # the first of several frames in uncompressed YBR_FULL_422.
    pixels: NDArray[Any] = np.stack(
        [one for index in frames for one in iter_pixels(dataset, indices=[index])]
    )
    colours = str(dataset.PhotometricInterpretation)
    if colours == "PALETTE COLOR":
        return _painted(pixels, dataset)
    if dataset.SamplesPerPixel > 1:
        return _scaled(pixels, (0, 2 ** int(dataset.BitsStored) - 1))
    grey = _scaled(*_grey(pixels, dataset))
    return np.repeat((255 - grey if colours == "MONOCHROME1" else grey)[..., None], 3, axis=-1)


def _scaled(pixels: NDArray[Any], shown: Range) -> NDArray[np.uint8]:
    low, high = shown
    if pixels.dtype == np.uint8 and (low, high) == (0, 255):
        return pixels
    factor = 255 / max(high - low, 1e-9)
    return np.rint((np.clip(pixels, low, high) - low) * factor).astype(np.uint8)


def _painted(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Through the palette (0028,1101) to (0028,1203); entries of 16 bits may hold values of 8."""
    from pydicom.pixels import apply_color_lut

    painted = apply_color_lut(pixels, dataset)
    if painted.dtype == np.uint8:
        return _scaled(painted, (0, 255))
    count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    palette = apply_color_lut(np.arange(first, first + (count or 65536), dtype=np.uint16), dataset)
    return _scaled(painted, (0, 255 if palette.max() <= 255 else 65535))


def _grey(pixels: NDArray[Any], dataset: Dataset) -> tuple[NDArray[Any], Range]:
    """Values after rescaling and windowing, and the range that they may have.

    The range is the window's, else that of 8 bits or fewer, else that of the whole cine.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(pixels, dataset)
    if dataset.get("VOILUTSequence"):
        count, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
        table = apply_voi_lut(np.arange(first, first + (count or 65536)), dataset)
        # Rescaling makes fractions; a table has none.
        return apply_voi_lut(np.rint(values).astype(np.int64), dataset), (table.min(), table.max())
    if dataset.get("WindowWidth"):
        with np.errstate(over="ignore"):  # a sigmoid's ends
            low, high = sorted(apply_voi_lut(np.array([-1e9, 1e9]), dataset).tolist())
        return apply_voi_lut(values, dataset), (low, high)
    bits = int(dataset.BitsStored)
    if bits <= 8:
        lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
        ends = apply_modality_lut(np.array([lowest, lowest + 2**bits - 1]), dataset)
        return values, (ends.min(), ends.max())
    return values, _whole_range(values, dataset)


def _whole_range(values: NDArray[Any], dataset: Dataset) -> Range:
    """Lowest and highest value of all frames, of which ``values`` are some."""
    from pydicom.pixels import apply_modality_lut, iter_pixels

    if len(values) == int(dataset.get("NumberOfFrames") or 1):
        return values.min(), values.max()
    ends = [
        (one.min(), one.max()) for one in (apply_modality_lut(raw, dataset) for raw in iter_pixels(dataset))
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)
