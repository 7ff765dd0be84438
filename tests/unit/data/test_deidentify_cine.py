"""Frames of one cine share a reading, and whatever is written in any of them is found."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from echoray.data.deidentify.cine import read_cine, redact_cines
from echoray.data.deidentify.pixels import RapidTextReader, ReadText
from echoray.data.deidentify.rules import load_rules
from echoray.data.phantom.fonts import load_font
from echoray.types import Box, Frame, Region

RULES = load_rules()
WIDTH, HEIGHT = 480, 360
SCAN = Box(140, 80, 400, 300)
WHOLE = (Region(Box(0, 0, WIDTH, HEIGHT), 1, 1, None),)  # as some machines tag it: no default deny helps
DEPTH, CLOCK, NOTE = (8, 100), (360, 8), (150, 320)


class Counting:
    """The real reader, and how many pixels it was given."""

    def __init__(self) -> None:
        self.reader, self.sizes = RapidTextReader(), list[int]()

    def read(self, pixels_HW3: NDArray[np.uint8]) -> list[ReadText]:
        self.sizes.append(pixels_HW3.shape[0] * pixels_HW3.shape[1])
        return self.reader.read(pixels_HW3)


@pytest.fixture(scope="module")
def reader() -> Counting:
    return Counting()


def picture(number: int, *texts: tuple[tuple[int, int], str]) -> NDArray[np.uint8]:
    """Moving tissue, one setting that stays, and texts at their places."""
    rng = np.random.default_rng(number)
    speckle = rng.normal(70, 12, (SCAN.y1 - SCAN.y0, SCAN.x1 - SCAN.x0)).clip(0, 110)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[SCAN.y0 : SCAN.y1, SCAN.x0 : SCAN.x1] = speckle[..., None]
    page = Image.fromarray(pixels)
    for at, text in ((DEPTH, "D 8.0 cm"), *texts):
        ImageDraw.Draw(page).text(at, text, font=load_font("en", 15), fill=(235, 235, 235))
    return np.asarray(page).copy()


def ink(at: tuple[int, int], text: str) -> NDArray[np.bool_]:
    page = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(page).text(at, text, font=load_font("en", 15), fill=255)
    return np.asarray(page) > 128


def legible(clean: NDArray[np.uint8], at: tuple[int, int], text: str) -> bool:
    """Whether most of the ink of a text is still as bright as it was written."""
    return bool((clean.max(axis=2)[ink(at, text)] > 180).mean() > 0.1)


def clean(pictures: list[NDArray[np.uint8]], reader: Counting) -> list[NDArray[np.uint8]]:
    frames = [Frame(pixels, WHOLE, cine=3) for pixels in pictures]
    return [one.frame.pixels for one in redact_cines(frames, reader, identifiers=(), rules=RULES)]


def test_a_banner_that_changes_and_a_text_that_comes_later_are_found(reader: Counting) -> None:
    first, second, later = "10:24:31", "Okafor Grace", "Lindqvist"
    pictures = [
        picture(0, (CLOCK, first)),
        picture(1, (CLOCK, first)),
        picture(2, (CLOCK, second)),
        picture(3, (CLOCK, second), (NOTE, later)),
    ]
    assert legible(pictures[0], CLOCK, first) and legible(pictures[3], NOTE, later)
    reader.sizes.clear()
    cleaned = clean(pictures, reader)
    for pixels in cleaned:
        assert not any(legible(pixels, *one) for one in ((CLOCK, first), (CLOCK, second), (NOTE, later)))
        assert legible(pixels, DEPTH, "D 8.0 cm")
    assert reader.sizes[0] == WIDTH * HEIGHT
    assert max(reader.sizes[1:]) < 0.7 * WIDTH * HEIGHT  # then only what moved or changed


def test_moving_tissue_is_read_at_both_ends_and_where_it_held_text(
    reader: Counting,
) -> None:
    over, names = (200, 180), ["Okafor Grace", "Lindqvist Per", "Moreau Anna"]
    pictures = [picture(number, (CLOCK, "10:24:31"), (over, names[number // 2])) for number in range(6)]
    reader.sizes.clear()
    cleaned = clean(pictures, reader)
    for pixels in cleaned:
        assert not any(legible(pixels, over, name) for name in names)
        assert legible(pixels, DEPTH, "D 8.0 cm")
    tissue = (SCAN.x1 - SCAN.x0) * (SCAN.y1 - SCAN.y0)
    first, *between, last = reader.sizes
    assert first == WIDTH * HEIGHT and last > tissue
    assert 0 < sum(between) < 4 * 0.5 * tissue


def test_what_is_removed_from_one_frame_is_removed_from_all_of_its_cine_only(reader: Counting) -> None:
    named, bare = picture(0, (CLOCK, "Okafor")), picture(0, (CLOCK, "D 7.0 cm"))
    spoken = np.flatnonzero(ink(CLOCK, "D 7.0 cm").any(axis=1))
    rows = np.s_[spoken[0] : spoken[-1] + 1, CLOCK[0] : CLOCK[0] + 40]
    together = clean([named, bare], reader)[1]
    assert not (together[rows] == bare[rows]).all()
    frames = [Frame(named, WHOLE, cine=0), Frame(bare, WHOLE, cine=1)]
    apart = redact_cines(frames, reader, identifiers=(), rules=RULES)[1].frame.pixels
    assert (apart == bare).all()


def test_a_frame_that_repeats_is_not_read_again_and_says_the_same(reader: Counting) -> None:
    still = picture(0, (CLOCK, "10:24:31"))
    noisy = (still.astype(np.int16) + np.random.default_rng(1).integers(-4, 5, still.shape)).clip(0, 255)
    reader.sizes.clear()
    texts = list(read_cine([still, still, noisy.astype(np.uint8)], reader))
    assert len(reader.sizes) == 1 and texts[0] == texts[1] == texts[2]
    assert {"10:24:31"} <= {one.text for one in texts[0]}
