"""Two panels are told from one view by the pixels alone, on labelled phantom frames and on real ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pydicom
import pytest

from echoray.data.panels import find_tissue, shows_two_panels
from echoray.data.phantom import synthesize_study
from echoray.data.quality import frame_rejection
from echoray.data.sources.dicom import evenly, to_rgb
from echoray.data.sources.samples import package_samples
from echoray.types import Box, Frame, Language

SIZES = ((640, 480), (480, 640), (800, 450))
NUM_EACH = 150


@dataclass(frozen=True)
class Labelled:
    """A phantom frame without its regions tag, and the boxes of its panels."""

    pixels: np.ndarray
    panels: tuple[Box, ...]


def drawn(index: int, fault: str | None) -> Labelled:
    width, height = SIZES[index % len(SIZES)]
    language: Language = "zh" if index % 2 else "en"
    study = synthesize_study(index, seed=21, language=language, width=width, height=height, fault=fault)
    frame = study.frames[-1]  # the colour frame, where there is one
    return Labelled(frame.pixels, tuple(one.box for one in frame.regions if one.data_type == 1))


@pytest.fixture(scope="module")
def single() -> list[Labelled]:
    return [drawn(index, None) for index in range(NUM_EACH)]


@pytest.fixture(scope="module")
def beside() -> list[Labelled]:
    return [drawn(1000 + index, "multi_region") for index in range(NUM_EACH)]


def jpeg(pixels: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)


def noisy(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels + np.random.default_rng(1).normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


def speckled(pixels: np.ndarray) -> np.ndarray:
    grain = np.random.default_rng(2).gamma(4, 0.25, (*pixels.shape[:2], 1))
    return np.clip(pixels * grain, 0, 255).astype(np.uint8)


def widescreen(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, (1280, 720))


def same(pixels: np.ndarray) -> np.ndarray:
    return pixels


ALTERED: tuple[Callable[[np.ndarray], np.ndarray], ...] = (same, jpeg, noisy, speckled, widescreen)


def test_side_by_side_panels_are_found_and_single_views_left(
    single: list[Labelled], beside: list[Labelled]
) -> None:
    assert {len(one.panels) for one in single} == {1} and {len(one.panels) for one in beside} == {2}
    found, fired = [], []
    for number, (two, one) in enumerate(zip(beside, single, strict=True)):
        alter = ALTERED[number % len(ALTERED)]
        found.append(frame_rejection(Frame(alter(two.pixels))))
        fired.append(frame_rejection(Frame(alter(one.pixels))))
    hits = found.count("multi_region")
    false = fired.count("multi_region")
    precision, recall = hits / max(1, hits + false), hits / len(found)
    print(f"{len(found)} + {len(fired)} decisions: precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= 0.995 and recall >= 0.98
    assert set(fired) == {None}  # nor anything else


def test_panels_above_each_other_are_found_and_a_vessel_across_the_scan_is_none(
    single: list[Labelled],
) -> None:
    frames = [stacked(single[place], single[place + 7]) for place in range(0, NUM_EACH - 7, 2)]
    recall = np.mean([shows_two_panels(find_tissue(one)) for one in frames])
    print(f"{len(frames)} stacked frames: recall {recall:.3f}")
    assert recall >= 0.85


def stacked(upper: Labelled, lower: Labelled) -> np.ndarray:
    """Two phantom panels of one system on a 640 x 480 frame, with a gutter of 12 rows."""
    (box,), (other,) = upper.panels, lower.panels
    first, second = cut(upper.pixels, box), cut(lower.pixels, other)
    scale = min(200 / len(first), 500 / first.shape[1])
    size = (round(first.shape[1] * scale), round(len(first) * scale))
    frame = np.zeros((480, 640, 3), np.uint8)
    for top, part in ((56, first), (68 + size[1], second)):
        frame[top : top + size[1], 60 : 60 + size[0]] = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    return frame


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.y0 : box.y1, box.x0 : box.x1]


def test_a_shadow_through_the_whole_scan_makes_no_second_view(single: list[Labelled]) -> None:
    fired = 0
    frames = single[::2]
    for number, one in enumerate(frames):
        (box,), pixels = one.panels, one.pixels.copy()
        half, top = (box.x1 - box.x0) // (12 + number % 20), box.y0 + (box.y1 - box.y0) // 14
        middle = (box.x0 + box.x1) // 2 + (number % 5 - 2) * half // 2
        pixels[top : box.y1, middle - half : middle + half] //= 25
        fired += shows_two_panels(find_tissue(pixels))
    print(f"{fired} of {len(frames)} frames with a shadow")
    assert fired <= 0.03 * len(frames)


def test_no_real_frame_without_its_tag_is_rejected() -> None:
    seen = 0
    for sample in package_samples():
        header = pydicom.dcmread(io.BytesIO(sample.read_bytes()))
        for pixels in to_rgb(header, evenly(int(header.get("NumberOfFrames") or 1), 4)):
            # ALOKA's and GE's two panels touch: no gutter, not found.
            assert frame_rejection(Frame(pixels)) is None, sample.name
            seen += 1
    assert seen >= 20
