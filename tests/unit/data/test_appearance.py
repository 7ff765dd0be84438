"""Pictures that are no ultrasound are named so; scans are not (see also test_panels.py)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.data import get_testdata_file

from echoray.data.phantom import synthesize_study
from echoray.data.quality import frame_rejection
from echoray.data.sources.dicom import to_rgb
from echoray.types import Frame

OTHER = "not_ultrasound_image"


def page(paper: tuple[int, int, int], ink: tuple[int, int, int]) -> np.ndarray:
    image = Image.new("RGB", (800, 600), paper)
    pen = ImageDraw.Draw(image)
    for line in range(30):
        text = "The liver is of normal size and smooth outline, no focal lesion is seen."[
            : 45 + line * 7 % 25
        ]
        pen.text((30, 15 + 19 * line), text, fill=ink, font_size=14)
    return np.asarray(image)


def colour_bars() -> np.ndarray:
    colours = [(192, 192, 192), (192, 192, 0), (0, 192, 192), (0, 192, 0), (192, 0, 192), (192, 0, 0)]
    return np.repeat(np.repeat(np.array([colours], np.uint8), 107, axis=1), 480, axis=0)


def plot() -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    figure.subplots().plot([3, 1, 4, 1, 5])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shipped(package: str, path: str) -> np.ndarray:
    found = find_spec(package)
    places = found.submodule_search_locations if found else None
    if not places:
        pytest.skip(f"{package} is not installed")
    return np.asarray(Image.open(Path(next(iter(places))) / path).convert("RGB"))


def pages() -> dict[str, np.ndarray]:
    white, black = (255, 255, 255), (0, 0, 0)
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    return {
        "printed page": page(white, black),
        "text on black": page(black, white),
        "dark screenshot": page((40, 44, 52), (220, 220, 220)),
        "colour bars": colour_bars(),
        "grey ramp": np.repeat(np.repeat(ramp[None, :, None], 480, 0), 3, 2),
        "plot": plot(),
    }


def photographs() -> dict[str, np.ndarray]:
    return {
        "portrait": shipped("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
        "temple": shipped("sklearn", "datasets/images/china.jpg"),
        "flower": shipped("sklearn", "datasets/images/flower.jpg"),
    }


def of_other_modalities() -> dict[str, np.ndarray]:
    found = {}
    for name in ("RG1_UNCR.dcm", "RG3_UNCR.dcm", "CT_small.dcm"):
        path = get_testdata_file(name, download=False)
        assert path is not None
        found[name] = to_rgb(pydicom.dcmread(str(path)), [0])[0]
    return found


def test_pages_photographs_and_radiographs_are_no_ultrasound() -> None:
    pictures = pages() | photographs() | of_other_modalities()
    reasons = {name: frame_rejection(Frame(pixels)) for name, pixels in pictures.items()}
    assert reasons == dict.fromkeys(pictures, OTHER)


def test_a_frame_without_signal_is_blank() -> None:
    frame = synthesize_study(8, seed=4, language="en", width=640, height=480).frames[0]
    assert frame_rejection(Frame(frame.pixels)) is None
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    assert frame_rejection(Frame(noise)) == "blank"
    assert frame_rejection(Frame(noise, frame.regions)) == "blank"
    box, emptied = frame.regions[0].box, frame.pixels.copy()
    emptied[box.y0 : box.y1, box.x0 : box.x1] = 0  # banner, settings and depth scale are still there
    assert frame_rejection(Frame(emptied)) == "blank"
