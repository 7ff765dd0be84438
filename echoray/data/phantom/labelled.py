"""Frames with labelled burned-in text of many kinds, to measure what de-identification removes and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from echoray.data.phantom.anatomy import KINDS, build_anatomy
from echoray.data.phantom.fonts import FACES, load_face
from echoray.data.phantom.identity import Identity
from echoray.data.phantom.page import BLACK, Colour, Page
from echoray.data.phantom.physics import simulate
from echoray.data.phantom.scene import Scene, View, fit_panel
from echoray.data.phantom.study import derive_rng
from echoray.data.phantom.styles import STYLES, Shares, Stack
from echoray.data.phantom.wording import GOES, draw_identity, words
from echoray.types import SYSTEMS, Box, Frame, Language, Region

TAGS = ("scan", "frame", "none")  # what the regions tag bounds: the scan, the whole frame; or no tag at all
_SIZES = ((640, 480), (800, 600), (1024, 768))
_SCANS = 3  # per style and size
_BARS: tuple[Colour, ...] = ((0, 0, 0), (16, 18, 28), (36, 60, 95), (44, 44, 44), (200, 204, 210))
_INKS: tuple[Colour, ...] = (
    (235, 235, 235), (255, 255, 255), (190, 190, 190), (250, 220, 60), (120, 210, 250), (110, 230, 120),
    (250, 170, 90),
)  # fmt: skip
_DARK_INK: Colour = (16, 16, 16)


@dataclass(frozen=True)
class Mark:
    """Something drawn: its box, its kind, whether it identifies, and its pixels within the box."""

    box: Box
    kind: str
    goes: bool
    ink_HW: NDArray[np.bool_]
    wording: str


@dataclass(frozen=True)
class LabelledFrame:
    """A frame, what was drawn on it, and whose it is; ``in_header`` says if a header names them."""

    frame: Frame
    marks: tuple[Mark, ...]
    identity: Identity
    in_header: bool
    style: str
    language: Language
    tag: str


def labelled_frame(index: int, *, seed: int) -> LabelledFrame:
    """Frame number ``index``; styles, languages and regions tags take turns, all else comes from the seed."""
    rng = derive_rng(seed, index, "overlay")
    style = STYLES[index % len(STYLES)]
    language: Language = "zh" if (index // len(STYLES)) % 2 else "en"
    tag = TAGS[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    width, height = _SIZES[int(rng.choice(3, p=(0.5, 0.35, 0.15)))]
    pixels, panel = _scan(style.scan, width, height, int(rng.integers(_SCANS)))
    identity = draw_identity(rng, language)
    writer = _Writer(pixels.copy(), language, rng)
    for bar in style.bars:
        writer.fill(bar)
    for stack in style.stacks:
        writer.write_stack(stack, identity)
    writer.mark_scan(panel)
    box = {"scan": panel, "frame": Box(0, 0, width, height)}.get(tag)
    regions = () if box is None else (Region(box, 1, 1, 0.3),)
    return LabelledFrame(
        Frame(writer.page.pixels, regions),
        tuple(writer.marks),
        identity,
        bool(rng.random() < 0.5),
        style.name,
        language,
        tag,
    )


@lru_cache(maxsize=len(STYLES) * _SCANS * len(_SIZES))
def _scan(shares: Shares, width: int, height: int, number: int) -> tuple[NDArray[np.uint8], Box]:
    """A synthetic scan of (height, width, 3) and its box; few are made, since the writing is what varies."""
    rng = derive_rng(0, number, f"{shares} {width}")
    system = SYSTEMS[int(rng.integers(len(SYSTEMS)))]
    anatomy = build_anatomy(system, str(rng.choice(KINDS[system])), rng)
    panel = fit_panel(anatomy.probe, _to_px(shares, width, height))
    view = View(anatomy, panel, gain_db=float(rng.uniform(-2, 4)), colour=anatomy.flow_box_mm is not None)
    return simulate(Scene(width, height, (view,)), rng), panel.box


def _to_px(shares: Shares, width: int, height: int) -> Box:
    x0, y0, x1, y1 = shares
    return Box(round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))


class _Writer:
    """Draws on a page and keeps what was drawn; whatever would touch something else is left out."""

    def __init__(self, pixels: NDArray[np.uint8], language: Language, rng: np.random.Generator) -> None:
        self.page, self.language, self.rng = Page(pixels), language, rng
        self.marks: list[Mark] = []
        self.face = str(rng.choice(FACES[language]))
        least = 13 if language == "zh" else 11
        self.size_px = round(float(rng.uniform(least, 17)) * self.page.scale)
        self.bar_colour = _BARS[int(rng.integers(len(_BARS)))]
        self.bars: list[Box] = []
        self.ink, self.bar_ink = (_INKS[int(rng.integers(len(_INKS)))] for _ in range(2))
        if min(self.bar_colour) > 128:
            self.bar_ink = _DARK_INK

    def fill(self, shares: Shares) -> None:
        box = _to_px(shares, self.page.width, self.page.height)
        self.page.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=self.bar_colour)
        self.bars.append(box)

    def write_stack(self, stack: Stack, identity: Identity) -> None:
        jitter = self.rng.uniform(0, 0.006, 2)
        x = (stack.x + (jitter[0] if stack.x < 0.9 else -jitter[0])) * self.page.width
        y = (stack.y + jitter[1]) * self.page.height
        for line in stack.lines:
            kind = str(self.rng.choice(line.split("|")))
            if kind == "body_mark":
                self.body_mark(x, y)
                continue
            self.write(kind, words(kind, self.rng, identity, self.language), (x, y), stack.anchor + "a")
            y += 1.3 * self.size_px

    def write(self, kind: str, text: str, at: tuple[float, float], anchor: str) -> None:
        font = load_face(self.face, self.size_px)
        box = self.page.bounds(at, text, font, anchor)
        if not self._free(box, round(1.2 * self.size_px)):
            return
        in_bar = any(bar.y0 <= (box.y0 + box.y1) / 2 < bar.y1 for bar in self.bars)
        fill, outline = (self.bar_ink, self.bar_colour) if in_bar else (self.ink, BLACK)
        self.page.write(at, text, font, fill=fill, outline=outline, anchor=anchor)
        mask = Image.new("L", self.page.image.size)
        ImageDraw.Draw(mask).text(at, text, fill=255, font=font, anchor=anchor)
        self._keep(kind, box, np.asarray(mask) >= 128, text)

    def mark_scan(self, panel: Box) -> None:
        """Depth numbers beside the scan, and a pair of crosses in it."""
        pitch = max(40, (panel.y1 - panel.y0) // 6)
        for number, y in enumerate(range(panel.y0 + pitch, panel.y1 - pitch // 2, pitch)):
            self.write("scale", f"{2 * number + 2}", (panel.x1 + 8 * self.page.scale, y), "lm")
        arm = round(5 * self.page.scale)
        for _ in range(2):
            x, y = (int(self.rng.uniform(low + 0.3 * (high - low), low + 0.7 * (high - low)))
                    for low, high in ((panel.x0, panel.x1), (panel.y0, panel.y1)))  # fmt: skip
            box = Box(x - arm, y - arm, x + arm + 1, y + arm + 1)
            if self._free(box, arm):
                lines: list[list[float]] = [[x - arm, y, x + arm, y], [x, y - arm, x, y + arm]]
                self._draw("caliper", box, lines, [])

    def body_mark(self, x: float, y: float) -> None:
        """An outline of a trunk, a pair of breasts or a neck, with the probe's mark; its foot stands at y."""
        size = round(self.rng.uniform(0.08, 0.13) * self.page.height)
        left = min(max(2, round(x)), self.page.width - size - 2)
        box = Box(left, round(y) - size, left + size, round(y))
        if not self._free(box, self.size_px):
            return
        picture = _PICTURES[int(self.rng.integers(len(_PICTURES)))]
        lines = [box.x0, box.y0] * 2 + (size - 1) * np.array(picture.lines)
        ovals = [box.x0, box.y0] * 2 + (size - 1) * np.array(picture.ovals)
        self._draw("body_mark", box, lines.tolist(), ovals.tolist())

    def _draw(self, kind: str, box: Box, lines: list[list[float]], ovals: list[list[float]]) -> None:
        mask = Image.new("L", self.page.image.size)
        for draw, colour in ((self.page.draw, self.ink), (ImageDraw.Draw(mask), 255)):
            for line in lines:
                draw.line(line, fill=colour)
            for oval in ovals:
                draw.ellipse(oval, outline=colour)
        self._keep(kind, box, np.asarray(mask) > 0, "")

    def _keep(self, kind: str, box: Box, ink_HW: NDArray[np.bool_], wording: str) -> None:
        ink = ink_HW[box.y0 : box.y1, box.x0 : box.x1].copy()
        self.marks.append(Mark(box, kind, kind in GOES, ink, wording))

    def _free(self, box: Box, gap: int) -> bool:
        """Whether a box lies within the frame and ``gap`` pixels beside, 1 above and below, all others."""
        page = self.page
        if box.x0 < 1 or box.y0 < 0 or box.x1 > page.width - 1 or box.y1 > page.height - 1:
            return False
        return all(
            box.x1 + gap <= one.box.x0
            or one.box.x1 + gap <= box.x0
            or box.y1 <= one.box.y0
            or one.box.y1 <= box.y0
            for one in self.marks
        )


@dataclass(frozen=True)
class _Picture:
    """Lines and ovals, each (x0, y0, x1, y1) in shares of the picture's side."""

    lines: tuple[Shares, ...]
    ovals: tuple[Shares, ...]


_TRUNK = _Picture(
    (
        (0.3, 0.28, 0.1, 0.45), (0.1, 0.45, 0.2, 1), (0.7, 0.28, 0.9, 0.45), (0.9, 0.45, 0.8, 1),
        (0.2, 1, 0.8, 1), (0.3, 0.28, 0.7, 0.28), (0.35, 0.6, 0.55, 0.7),
    ),
    ((0.36, 0, 0.64, 0.28),),
)  # fmt: skip
_BREASTS = _Picture(
    ((0.2, 0.2, 0.35, 0.35),),
    ((0, 0.2, 0.52, 0.8), (0.5, 0.2, 1, 0.8), (0.22, 0.46, 0.3, 0.54), (0.7, 0.46, 0.78, 0.54)),
)
_NECK = _Picture(
    (
        (0.3, 0, 0.3, 0.5), (0.7, 0, 0.7, 0.5), (0.3, 0, 0.7, 0), (0.3, 0.5, 0, 1), (0.7, 0.5, 1, 1),
        (0, 1, 1, 1), (0.4, 0.3, 0.6, 0.3),
    ),
    ((0.32, 0.4, 0.5, 0.75), (0.5, 0.4, 0.68, 0.75)),
)  # fmt: skip
_PICTURES = (_TRUNK, _BREASTS, _NECK)
