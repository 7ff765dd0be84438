"""What a scanner burns into its frames: patient banner, settings, depth ticks, label, calipers.

Everything drawn returns its pixel box, so that the ground truth says which text names a person
(``banner_boxes``) and which has to stay (``keep_boxes``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echoray.data.phantom.fonts import load_font
from echoray.data.phantom.identity import Identity
from echoray.data.phantom.page import GREEN, GREY, WHITE, YELLOW, Colour, Page, Point
from echoray.data.phantom.scene import View
from echoray.types import Box, Language

BANNER_SHARE = 0.1  # of the frame's height

# (column, row, template) of each banner text; columns: 0 left edge, 1 right edge, else a share of the width.
_BANNERS: dict[Language, tuple[tuple[tuple[float, int, str], ...], ...]] = {
    "en": (
        (
            (0, 0, "{name_upper}"),
            (0.38, 0, "ID {patient_id}"),
            (1, 0, "{date} {time}"),
            (0, 1, "{hospital}"),
            (0.48, 1, "{sex} {age}Y DOB {birth_date}"),
            (1, 1, "Op {operator}"),
        ),
        (
            (0, 0, "Name: {name}"),
            (0.44, 0, "ID: {patient_id}"),
            (1, 0, "{date}"),
            (0, 1, "DOB: {birth_date}  Sex: {sex}  Age: {age}"),
            (0.42, 1, "{hospital}"),
            (1, 1, "{operator} {time}"),
        ),
        (
            (0, 0, "{hospital}"),
            (0.54, 0, "{time}"),
            (1, 0, "{date}"),
            (0, 1, "{name_comma}"),
            (0.36, 1, "{patient_id}"),
            (0.58, 1, "{age} yr {sex}"),
            (1, 1, "by {operator}"),
        ),
    ),
    "zh": (
        (
            (0, 0, "姓名：{name}"),
            (0.3, 0, "病历号：{patient_id}"),
            (1, 0, "{date} {time}"),
            (0, 1, "{hospital}"),
            (0.36, 1, "{sex_word} {age}岁"),
            (1, 1, "操作者：{operator}"),
        ),
        (
            (0, 0, "{hospital}"),
            (0.45, 0, "{name} {sex_word} {age}岁"),
            (1, 0, "{date}"),
            (0, 1, "ID：{patient_id}"),
            (0.3, 1, "出生日期：{birth_date}"),
            (1, 1, "{operator} {time}"),
        ),
    ),
}
_SEX_ZH = {"F": "女", "M": "男"}


@dataclass(frozen=True)
class Marks:
    """Boxes of the burned-in text, and where the calipers were put: (x, y) pixel pairs."""

    banner_boxes: tuple[Box, ...]
    keep_boxes: tuple[Box, ...]
    calipers_px: tuple[tuple[Point, Point], ...]


def image_area(width: int, height: int) -> Box:
    """The part of a frame that is free for panels: below the banner, above the bottom line of text."""
    return Box(
        round(0.11 * width), round((BANNER_SHARE + 0.012) * height), round(0.95 * width), round(0.94 * height)
    )


def annotate(
    pixels: NDArray[np.uint8],
    views: tuple[View, ...],
    identity: Identity,
    label: str,
    *,
    language: Language,
    layout: int,
    measured: bool,
) -> tuple[NDArray[np.uint8], Marks]:
    """Burn all text into a copy of ``pixels``; ``layout`` chooses the banner, ``measured`` adds calipers."""
    page = _Page(pixels, language)
    banner = page.banner(identity, layout)
    keep = [*page.settings(views[0]), *page.label(label)]
    calipers: list[tuple[Point, Point]] = []
    for view in views:
        keep += page.ticks(view)
        if view.colour:
            page.colour_box(view)
    if measured:
        boxes, calipers = page.calipers(views[0])
        keep += boxes
    return page.pixels, Marks(tuple(banner), tuple(keep), tuple(calipers))


class _Page(Page):
    """A frame with its scan and settings; text size follows the frame's size."""

    def __init__(self, pixels: NDArray[np.uint8], language: Language) -> None:
        super().__init__(pixels)
        self.language = language
        self.size_px = max(8, round(14 * self.scale))

    def text(
        self,
        at: Point,
        text: str,
        *,
        fill: Colour = WHITE,
        anchor: str = "la",
        small: bool = False,
        language: Language = "en",
    ) -> Box:
        font = load_font(language, max(8, round(0.8 * self.size_px)) if small else self.size_px)
        return self.write(at, text, font, fill=fill, anchor=anchor)

    def banner(self, identity: Identity, layout: int) -> list[Box]:
        bottom = round(BANNER_SHARE * self.height)
        self.draw.rectangle((0, 0, self.width, bottom - 2), fill=(16, 18, 28))
        fields = identity.fields()
        name = str(fields["name"])
        fields |= {
            "name_upper": name.upper(),
            "name_comma": identity.patient.dicom_name.replace("^", ", "),
            "sex_word": _SEX_ZH[identity.patient.sex],
        }
        layouts = _BANNERS[self.language]
        boxes = []
        for column, row, template in layouts[layout % len(layouts)]:
            x = (
                8 * self.scale
                if column == 0
                else self.width - 8 * self.scale
                if column == 1
                else column * self.width
            )
            at = (x, (0.02 + 0.49 * row) * bottom)
            anchor = "ra" if column == 1 else "la"
            boxes.append(self.text(at, template.format(**fields), anchor=anchor, language=self.language))
        return boxes

    def settings(self, view: View) -> list[Box]:
        probe = view.anatomy.probe
        mode = "CF 2.5 kHz" if view.colour else "2D"
        lines = (
            probe.name,
            f"{probe.frequency_mhz:.1f} MHz",
            f"D {probe.depth_mm / 10:.1f} cm",
            f"Gn {60 + round(view.gain_db)}",
            "DR 58 dB",
            mode,
        )
        step, top = 1.25 * self.size_px, (BANNER_SHARE + 0.02) * self.height
        boxes = [
            self.text((6 * self.scale, top + step * row), line, fill=GREY, small=True)
            for row, line in enumerate(lines)
        ]
        at = (self.width - 6 * self.scale, self.height - 4 * self.scale)
        return [*boxes, self.text(at, "MI 1.1  TIS 0.4", fill=GREY, anchor="rd", small=True)]

    def label(self, label: str) -> list[Box]:
        at = (self.width / 2, self.height - 3 * self.scale)
        return [self.text(at, label, fill=YELLOW, anchor="md", language=self.language)]

    def ticks(self, view: View) -> list[Box]:
        """A tick each 10 mm of depth beside the panel, numbered in cm each 50 mm (linear probes: each 10)."""
        panel, probe = view.panel, view.anatomy.probe
        x = min(panel.box.x1 + 4 * self.scale, self.width - 12 * self.scale)
        every = 1 if probe.is_linear else 5
        boxes = []
        for depth_cm in range(int(probe.depth_mm // 10) + 1):
            y = round(panel.to_px(0, 10 * depth_cm)[1])
            numbered = depth_cm % every == 0
            self.draw.line((x, y, x + (7 if numbered else 4) * self.scale, y), fill=WHITE)
            if numbered and depth_cm:
                boxes.append(
                    self.text((x + 9 * self.scale, y), str(depth_cm), fill=GREY, anchor="lm", small=True)
                )
        top, bottom = (round(panel.to_px(0, 10 * depth)[1]) for depth in (0, int(probe.depth_mm // 10)))
        boxes.append(Box(int(x), top, min(self.width, int(x + 8 * self.scale) + 1), bottom + 1))
        return boxes

    def calipers(self, view: View) -> tuple[list[Box], list[tuple[Point, Point]]]:
        """Crosses at both ends, dots between, and ``1 D 14.2 mm`` at the lower left."""
        boxes, pairs = [], []
        sizes = view.anatomy.findings[0].size_mm if view.anatomy.findings else ()
        top = self.height - (4 + 1.2 * self.size_px * len(sizes))
        for number, (size_mm, ends) in enumerate(zip(sizes, view.anatomy.calipers_mm, strict=True)):
            first, second = (view.panel.to_px(x - view.shift_mm, z) for x, z in ends)
            for share in np.linspace(0, 1, 14)[1:-1]:
                x, y = (a + share * (b - a) for a, b in zip(first, second, strict=True))
                self.draw.point((x, y), fill=GREEN)
            for x, y in (first, second):
                arm = 5 * self.scale
                self.draw.line((x - arm, y, x + arm, y), fill=GREEN)
                self.draw.line((x, y - arm, x, y + arm), fill=GREEN)
            at = (6 * self.scale, top + 1.2 * self.size_px * number)
            boxes.append(self.text(at, f"{number + 1} D {size_mm:.1f} mm", fill=GREEN))
            pairs.append((first, second))
        return boxes, pairs

    def colour_box(self, view: View) -> None:
        """The outline of the colour box and the colour bar."""
        box = flow_box_px(view)
        if box is None:
            return
        self.draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), outline=GREY)
        x, top, half = 10 * self.scale, 0.42 * self.height, 34 * self.scale
        for row in range(int(half)):
            level = int(90 + 165 * (1 - row / half))
            warm = (level, int(190 * (1 - row / half) ** 2), 0)
            self.draw.line((x, top + row, x + 10 * self.scale, top + row), fill=warm)
            y = top + 2 * half - row
            self.draw.line((x, y, x + 10 * self.scale, y), fill=warm[::-1])


def flow_box_px(view: View) -> Box | None:
    """The colour box in pixels, cut to the panel; None without one."""
    if view.anatomy.flow_box_mm is None:
        return None
    x0, z0, x1, z1 = view.anatomy.flow_box_mm
    (left, top), (right, bottom) = (view.panel.to_px(x - view.shift_mm, z) for x, z in ((x0, z0), (x1, z1)))
    panel = view.panel.box
    return Box(
        max(panel.x0, int(left)),
        max(panel.y0, int(top)),
        min(panel.x1, int(right)),
        min(panel.y1, int(bottom)),
    )
