"""A known picture in every transfer syntax and colour space comes back as itself; real files match twins."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from echoray.data.sources.pixels import to_rgb
from tests.unit.data.test_dicom_source import grey

ROWS, COLUMNS, FRAMES = 48, 80, 3
Make = Callable[[], Dataset]


def cine() -> np.ndarray:
    """Three smooth frames of strong colours, no two alike, and neither square nor symmetric: (N, H, W, 3)."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    waves = [
        [127 + 120 * np.sin((x * (1 + c) + y * (2 - c)) / 23 + c + 2 * n) for c in range(3)]
        for n in range(FRAMES)
    ]
    return np.ascontiguousarray(np.moveaxis(np.array(waves), 1, -1).astype(np.uint8))


def levels(bits: int) -> np.ndarray:
    """Grey frames of which each has its own darkest and brightest value, within ``bits``: (N, H, W)."""
    full = cine()[..., 0].astype(np.uint32) * (2**bits - 1) // 255
    return np.stack([frame // (3 - n) for n, frame in enumerate(full)]).astype(
        np.uint8 if bits <= 8 else np.uint16
    )


def coloured(photometric: str, content: bytes, syntax: UID | None = None, **values: object) -> Dataset:
    """An image of three samples of 8 bits a pixel; encapsulated where there is a syntax."""
    dataset = grey(np.zeros((FRAMES, ROWS, COLUMNS), np.uint8), photometric)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PixelData = content
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset if syntax is None else transferred(dataset, syntax)


def transferred(dataset: Dataset, syntax: UID) -> Dataset:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def packed(frames: Sequence[bytes]) -> bytes:
    return encapsulate(list(frames))


def pillow(frame: np.ndarray, mode: str, **options: object) -> bytes:
    target = io.BytesIO()
    Image.fromarray(frame).convert(mode).save(target, "JPEG", quality=95, **options)
    return target.getvalue()


def ybr(frames: np.ndarray) -> np.ndarray:
    return np.asarray(convert_color_space(frames, "RGB", "YBR_FULL"))


def ybr_422() -> bytes:
    """Two luminances, then the blue and the red that they share (PS3.3 C.7.6.3.1.2)."""
    full = ybr(cine()).reshape(-1, 2, 3)
    shared = full[..., 1:].mean(axis=1).astype(np.uint8)
    return np.concatenate([full[..., 0], shared], axis=1).tobytes()


def rle(photometric: str, frames: np.ndarray) -> Dataset:
    dataset = coloured(photometric, frames.tobytes())
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return dataset


def j2k(**options: object) -> bytes:
    return packed([imagecodecs.jpeg2k_encode(one, codecformat="j2k", **options) for one in cine()])


def jls(level: int) -> bytes:
    return packed([imagecodecs.jpegls_encode(one, level=level) for one in cine()])


def sof3(frames: np.ndarray, **options: object) -> bytes:
    return packed([imagecodecs.ljpeg_encode(one, **options) for one in frames])


# Name: how it is made, and by how many grey levels the decoded picture may differ (mean, most).
COLOURED: dict[str, tuple[Make, tuple[float, int]]] = {
    "plain": (lambda: coloured("RGB", cine().tobytes()), (0, 0)),
    "planes": (
        lambda: coloured("RGB", np.moveaxis(cine(), -1, 1).tobytes(), PlanarConfiguration=1),
        (0, 0),
    ),
    "ybr_full": (lambda: coloured("YBR_FULL", ybr(cine()).tobytes()), (1, 3)),
    "ybr_full planes": (
        lambda: coloured("YBR_FULL", np.moveaxis(ybr(cine()), -1, 1).tobytes(), PlanarConfiguration=1),
        (1, 3),
    ),
    "ybr_full_422": (lambda: coloured("YBR_FULL_422", ybr_422()), (3, 16)),
    "rle rgb": (lambda: rle("RGB", cine()), (0, 0)),
    "rle ybr_full": (lambda: rle("YBR_FULL", ybr(cine())), (1, 3)),
    "jpeg-ls": (lambda: coloured("RGB", jls(0), JPEGLSLossless), (0, 0)),
    "jpeg-ls near": (lambda: coloured("RGB", jls(2), JPEGLSNearLossless), (2, 2)),
    "jpeg 2000 rct": (lambda: coloured("YBR_RCT", j2k(reversible=True, mct=True), JPEG2000Lossless), (0, 0)),
    "jpeg 2000 rgb": (lambda: coloured("RGB", j2k(reversible=True, mct=False), JPEG2000Lossless), (0, 0)),
    "jpeg 2000 ict": (
        lambda: coloured("YBR_ICT", j2k(reversible=False, mct=True, level=50), JPEG2000),
        (1, 10),
    ),
    "jpeg ybr_full_422": (
        lambda: coloured(
            "YBR_FULL_422", packed([pillow(one, "RGB", subsampling=1) for one in cine()]), JPEGBaseline8Bit
        ),
        (2, 16),
    ),
    "jpeg ybr_full": (
        lambda: coloured(
            "YBR_FULL", packed([pillow(one, "RGB", subsampling=0) for one in cine()]), JPEGBaseline8Bit
        ),
        (2, 8),
    ),
    "jpeg lossless rgb": (
        lambda: coloured(
            "RGB",
            packed(
                [
                    imagecodecs.jpeg8_encode(one, lossless=True, predictor=1, outcolorspace="RGB")
                    for one in cine()
                ]
            ),
            JPEGLosslessSV1,
        ),
        (0, 0),
    ),
    "jpeg rgb": (
        lambda: coloured(
            "RGB",
            packed([pillow(one, "RGB", subsampling=0, keep_rgb=True) for one in cine()]),
            JPEGBaseline8Bit,
        ),
        (1, 4),
    ),
}


@pytest.mark.parametrize("name", COLOURED)
def test_a_coloured_cine_comes_back_as_itself(name: str) -> None:
    make, (mean, most) = COLOURED[name]
    dataset = written(make())
    pixels = to_rgb(dataset, range(FRAMES))
    assert pixels.dtype == np.uint8 and pixels.shape == cine().shape
    off = np.abs(pixels.astype(int) - cine())
    assert (off.mean(), off.max()) <= (mean, most) and off.max() <= most
    assert np.array_equal(to_rgb(dataset, [0, 2]), pixels[[0, 2]])


def written(dataset: Dataset) -> Dataset:
    """As it comes from a file."""
    target = io.BytesIO()
    pydicom.dcmwrite(target, dataset, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(target.getvalue()))


def grey_as(values: np.ndarray, bits: int, syntax: UID | None, content: bytes = b"") -> Dataset:
    dataset = grey(values, "MONOCHROME2", BitsStored=bits, HighBit=bits - 1)
    if syntax is not None:
        dataset.PixelData = content
        transferred(dataset, syntax)
    return dataset


GREY: dict[str, Callable[[np.ndarray, int], Dataset]] = {
    "plain": lambda values, bits: grey_as(values, bits, None),
    "jpeg-ls": lambda values, bits: grey_as(
        values, bits, JPEGLSLossless, packed([imagecodecs.jpegls_encode(one) for one in values])
    ),
    "jpeg lossless": lambda values, bits: grey_as(
        values, bits, JPEGLosslessSV1, sof3(values, bitspersample=bits)
    ),
    "jpeg 2000": lambda values, bits: grey_as(
        values,
        bits,
        JPEG2000Lossless,
        packed(
            [
                imagecodecs.jpeg2k_encode(one, codecformat="j2k", reversible=True, bitspersample=bits)
                for one in values
            ]
        ),
    ),
}


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("name", GREY)
def test_grey_is_exact_in_8_bits_and_in_more_shows_a_frame_the_same_in_any_choice(
    name: str, bits: int
) -> None:
    values = levels(bits)
    dataset = written(GREY[name](values, bits))
    pixels = to_rgb(dataset, range(FRAMES))
    low, high = (0, 255) if bits == 8 else (int(values.min()), int(values.max()))
    expected = np.rint((values.astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, -1))
    for number in range(FRAMES):
        assert np.array_equal(to_rgb(dataset, [number])[0], pixels[number])
    assert pixels[0].max() < pixels[1].max() < pixels[2].max()  # dark frames stay dark
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert np.array_equal(to_rgb(dataset, [1])[0], 255 - pixels[1])


def test_eight_bits_in_words_of_sixteen_and_six_in_eight_are_not_stretched() -> None:
    values = levels(8)
    words = grey(values.astype(np.uint16), "MONOCHROME2", BitsStored=8, HighBit=7)
    assert np.array_equal(to_rgb(words, [0])[0, ..., 0], values[0])
    six = to_rgb(grey(values // 4, "MONOCHROME2", BitsStored=6, HighBit=5), [0])[0, ..., 0]
    assert np.abs(six.astype(int) - values[0]).max() <= 4


def test_a_window_a_rescaling_and_a_table_decide_what_is_shown_and_not_the_frames_content() -> None:
    values = levels(16)
    center, width = 20000, 10001
    ramp = np.clip((values.astype(float) - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    windowed = grey(values, "MONOCHROME2", WindowCenter=center, WindowWidth=width)
    assert np.abs(to_rgb(windowed, range(FRAMES))[..., 0] - ramp).max() <= 1
    assert np.array_equal(to_rgb(windowed, [0])[0], to_rgb(windowed, range(FRAMES))[0])
    # The same window after rescaling by a half.
    rescaled = grey(values, "MONOCHROME2", RescaleSlope="0.5", RescaleIntercept="-100")
    rescaled.WindowCenter, rescaled.WindowWidth = center / 2 - 100, width / 2
    assert np.abs(to_rgb(rescaled, range(FRAMES))[..., 0] - ramp).max() <= 1
    windowed.VOILUTFunction = "SIGMOID"
    sigmoid = 255 / (1 + np.exp(-4 * (values.astype(float) - center) / width))
    assert np.abs(to_rgb(windowed, range(FRAMES))[..., 0] - sigmoid).max() <= 1
    eight = grey(levels(8), "MONOCHROME2", WindowCenter=128, WindowWidth=256)
    assert np.array_equal(to_rgb(eight, [0])[0, ..., 0], levels(8)[0])
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 8], list(range(255, -1, -1))
    eight.VOILUTSequence = [item]
    assert np.array_equal(to_rgb(eight, [0, 2])[1, ..., 0], 255 - levels(8)[2])


@pytest.mark.parametrize(("entry_bits", "factor"), [(8, 1), (16, 257), (16, 1)])
def test_a_palette_paints_a_frame_the_same_in_any_choice(entry_bits: int, factor: int) -> None:
    """Also where entries of 16 bits hold values of 8, as some machines write them."""
    values = levels(8)
    dataset = grey(values, "PALETTE COLOR")
    tables = [np.arange(256), np.arange(255, -1, -1), np.full(256, 40)]
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        data = (table * factor).astype("<u1" if entry_bits == 8 else "<u2").tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, entry_bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", data)
    painted = np.stack([table[values] for table in tables], -1)
    assert np.array_equal(to_rgb(dataset, range(FRAMES)), painted)
    assert np.array_equal(to_rgb(dataset, [0])[0], painted[0])


# Real files, the same picture in two transfer syntaxes, and the mean difference in grey levels.
TWINS = (
    ("RG1_UNCR", "RG1_J2KR", 0),  # 15 bits, MONOCHROME1
    ("RG3_UNCR", "RG3_J2KR", 0),  # 10 bits, MONOCHROME1
    ("MR2_UNCR", "MR2_J2KR", 0),  # 12 bits with a window
    ("emri_small", "emri_small_RLE", 0),  # 12 bits, ten frames
    ("emri_small", "emri_small_jpeg_ls_lossless", 0),
    ("emri_small", "emri_small_jpeg_2k_lossless", 0),
    ("emri_small", "emri_small_big_endian", 0),
    ("OBXXXX1A_2frame", "OBXXXX1A_rle_2frame", 0),
    ("gdcm-US-ALOKA-16", "gdcm-US-ALOKA-16_big", 0),  # palette
    ("SC_rgb_16bit_2frame", "SC_rgb_rle_16bit_2frame", 0),
    ("SC_rgb_dcmtk_ebcynp_dcmd", "SC_rgb_dcmtk_+eb+cy+np", 1),  # JPEG, YBR_FULL
    ("SC_rgb_dcmtk_ebcys2_dcmd", "SC_rgb_dcmtk_+eb+cy+s2", 1),  # JPEG, YBR_FULL_422
    ("SC_rgb_gdcm2k_uncompressed", "SC_rgb_gdcm_KY", 0),  # JPEG 2000, YBR_RCT
    ("US1_UNCI", "US1_J2KI", 1),  # JPEG 2000, YBR_ICT
)


def shipped(name: str) -> Path:
    path = get_testdata_file(f"{name}.dcm", download=False)
    assert path is not None, name
    return Path(str(path))


@pytest.mark.parametrize(("one", "other", "mean"), TWINS)
def test_a_real_file_looks_like_its_twin_in_another_transfer_syntax(
    one: str, other: str, mean: float
) -> None:
    first, second = (pydicom.dcmread(shipped(name)) for name in (one, other))
    assert first.file_meta.TransferSyntaxUID != second.file_meta.TransferSyntaxUID
    count = int(first.get("NumberOfFrames") or 1)
    frames = sorted({0, count - 1})
    pixels = to_rgb(first, frames)
    assert pixels.min() < 60 and pixels.max() > 200
    assert np.abs(pixels.astype(int) - to_rgb(second, frames)).mean() <= mean
    assert np.array_equal(to_rgb(second, frames[-1:])[0], to_rgb(second, frames)[-1])
