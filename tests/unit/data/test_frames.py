"""The picture that the model sees: within its budget, undistorted, and as transformers would have it."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from echoray.data.batch import grid_of, patchify
from echoray.data.frames import model_picture

BUDGETS_PX = (56, 168, 392)


def drawn(height: int, width: int, size_px: int, layout: str = "dynamic") -> NDArray[np.uint8]:
    """The picture of white content that stands on a black frame."""
    frame = np.zeros((height + 7, width + 5, 3), np.uint8)
    frame[3 : 3 + height, 4 : 4 + width] = 255
    picture = model_picture(frame, size_px, layout)  # type: ignore[arg-type]
    return np.asarray(Image.open(io.BytesIO(picture)))


def extent(picture_HW3: NDArray[np.uint8]) -> tuple[int, int]:
    rows, columns = (np.flatnonzero((picture_HW3 > 127).any(axis=(axis, 2))) for axis in (1, 0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@cache
def processor(size_px: int) -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": size_px**2})


sides = st.integers(1, 900)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.sampled_from(BUDGETS_PX))
@example(1, 1, 392)
@example(1, 2000, 392)
@example(2000, 1, 56)
@example(480, 640, 168)
def test_every_picture_keeps_its_budget_and_its_aspect(height: int, width: int, size_px: int) -> None:
    picture = drawn(height, width, size_px)
    rows, columns = picture.shape[:2]
    assert rows % 28 == columns % 28 == 0
    assert 56 * 56 <= rows * columns <= size_px**2
    assert max(rows, columns) <= 8 * min(rows, columns)
    assert smart_resize(rows, columns, 28, 56 * 56, size_px**2) == (rows, columns)
    shown_height, shown_width = extent(picture)
    # Both sides are rounded to whole pixels, of which each has at least one; nothing else is stretched.
    if min(shown_height, shown_width) > 1:
        assert abs(shown_height * width - shown_width * height) <= height + width
    assert shown_height <= height and shown_width <= width
    # What the square shows is never larger, unless it enlarges.
    square_height, square_width = extent(drawn(height, width, size_px, "square"))
    assert shown_height >= min(square_height, height)
    assert shown_width >= min(square_width, width)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from(BUDGETS_PX))
def test_the_picture_of_a_picture_is_the_picture(height: int, width: int, size_px: int) -> None:
    once = model_picture(np.full((height, width, 3), 255, np.uint8), size_px, "dynamic")
    assert model_picture(np.asarray(Image.open(io.BytesIO(once))), size_px, "dynamic") == once


@pytest.mark.parametrize("size_px", BUDGETS_PX)
@pytest.mark.parametrize(("height", "width"), [(40, 70), (480, 640), (768, 1024), (600, 150), (30, 900)])
def test_transformers_processor_with_this_budget_leaves_our_pictures_unchanged(
    height: int, width: int, size_px: int
) -> None:
    frame = np.random.default_rng(2).integers(30, 255, (height, width, 3), dtype=np.uint8)
    picture = model_picture(frame, size_px, "dynamic")
    found = processor(size_px)([Image.open(io.BytesIO(picture))], return_tensors="pt")
    assert tuple(found["image_grid_thw"][0].tolist()) == grid_of(picture)
    np.testing.assert_allclose(patchify(picture), found["pixel_values"].numpy(), rtol=0, atol=1e-6)
    assert model_picture(frame, size_px, "dynamic") == picture


@pytest.mark.parametrize(
    ("height", "width", "size_px", "shape"),
    [
        (480, 640, 392, (336, 448)),  # 12 x 16 cells: 14% larger than on the square
        (480, 640, 168, (140, 196)),
        (640, 480, 168, (196, 140)),
        (500, 500, 392, (392, 392)),
        (30, 50, 392, (56, 56)),  # not enlarged
    ],
)
def test_a_frame_gets_the_grid_that_shows_it_largest(
    height: int, width: int, size_px: int, shape: tuple[int, int]
) -> None:
    assert drawn(height, width, size_px).shape[:2] == shape
    assert drawn(height, width, size_px, "square").shape[:2] == (size_px, size_px)


def test_a_black_frame_has_a_picture_too() -> None:
    picture = model_picture(np.zeros((480, 640, 3), np.uint8), 168, "dynamic")
    assert np.asarray(Image.open(io.BytesIO(picture))).shape == (140, 196, 3)
