"""A frame that is written on: every drawing returns its pixel box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from echoray.types import Box

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Point = tuple[float, float]
Colour = tuple[int, int, int]

WHITE, GREY, YELLOW, GREEN = (235, 235, 235), (170, 170, 170), (250, 220, 60), (90, 230, 110)
BLACK = (0, 0, 0)


class Page:
    """A frame of (H, W, 3) being annotated; ``scale`` is its size against 640 x 480."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.image = Image.fromarray(pixels)
        self.draw = ImageDraw.Draw(self.image)
        self.width, self.height = self.image.size
        self.scale = min(self.width / 640, self.height / 480)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """A copy of the frame as it is now, (H, W, 3)."""
        return np.asarray(self.image).copy()

    def bounds(self, at: Point, text: str, font: FreeTypeFont, anchor: str = "la") -> Box:
        """Where ``write`` would put a text, outline included, cut to the frame."""
        x0, y0, x1, y1 = self.draw.textbbox(at, text, font=font, anchor=anchor, stroke_width=1)
        return Box(
            max(0, int(x0)),
            max(0, int(y0)),
            min(self.width, int(np.ceil(x1))),
            min(self.height, int(np.ceil(y1))),
        )

    def write(
        self,
        at: Point,
        text: str,
        font: FreeTypeFont,
        *,
        fill: Colour = WHITE,
        outline: Colour = BLACK,
        anchor: str = "la",
    ) -> Box:
        """Write a text with an outline of one pixel; ``anchor`` as in Pillow."""
        self.draw.text(at, text, fill=fill, font=font, anchor=anchor, stroke_width=1, stroke_fill=outline)
        return self.bounds(at, text, font, anchor)
