"""Case pictures: the frames beside the reference and what the models wrote."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from echoray.data.phantom.fonts import load_font
from echoray.evaluate.examples import Case
from echoray.types import Language

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_FRAME_PX = 336
_TEXT_PX = 620
_MARGIN_PX = 16
_SIZE_PX = 15
_LINE_PX = 21
_INK, _SOFT, _PAPER, _RULE = "#111827", "#6b7280", "#ffffff", "#d1d5db"
_NOTICE = "Research software, not a medical device. Generated texts are drafts."
_HAN = re.compile("[\u3400-\u9fff]")


def draw_case(case: Case, outputs: Mapping[str, str]) -> bytes:
    """A PNG: frames on the left; prompt, reference and every output (title -> text) on the right."""
    from PIL import Image, ImageDraw

    sections = {"Prompt": case.prompt, "Reference": case.reference, **outputs}
    blocks = {title: list(_wrapped(text or "(empty)")) for title, text in sections.items()}
    text_height = sum((len(lines) + 1) * _LINE_PX + _MARGIN_PX for lines in blocks.values())
    columns, side = _frame_grid(len(case.images))
    frames_height = math.ceil(len(case.images) / columns) * (side + _MARGIN_PX)
    width = _FRAME_PX + _TEXT_PX + 3 * _MARGIN_PX
    height = 3 * _MARGIN_PX + 2 * _LINE_PX + max(text_height, frames_height)
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    heading = f"{case.system.capitalize()}   {case.example_id}"
    draw.text((_MARGIN_PX, _MARGIN_PX), heading, _INK, _font(heading))
    _paste_frames(picture, case.images)
    _write_blocks(draw, blocks)
    draw.text((_MARGIN_PX, height - _LINE_PX - _MARGIN_PX // 2), _NOTICE, _SOFT, _font(_NOTICE))
    target = io.BytesIO()
    picture.save(target, "PNG")
    return target.getvalue()


def _paste_frames(picture: Image, images: Sequence[bytes]) -> None:
    from PIL import Image, ImageOps

    columns, side = _frame_grid(len(images))
    for number, png in enumerate(images):
        row, column = divmod(number, columns)
        with Image.open(io.BytesIO(png)) as frame:
            fitted = ImageOps.pad(frame.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        step = side + _MARGIN_PX
        picture.paste(fitted, (_MARGIN_PX + column * step, 2 * _MARGIN_PX + _LINE_PX + row * step))


def _frame_grid(num_frames: int) -> tuple[int, int]:
    """Columns and the side of a frame in pixels: one column for one or two frames, two for more."""
    return (1, _FRAME_PX) if num_frames <= 2 else (2, (_FRAME_PX - _MARGIN_PX) // 2)


def _write_blocks(draw: ImageDraw, blocks: Mapping[str, list[str]]) -> None:
    left, top = 2 * _MARGIN_PX + _FRAME_PX, 2 * _MARGIN_PX + _LINE_PX
    for title, lines in blocks.items():
        draw.text((left, top), title, _SOFT, _font(title))
        top += _LINE_PX
        for line in lines:
            draw.text((left, top), line, _INK, _font(line))
            top += _LINE_PX
        draw.line((left, top + 5, left + _TEXT_PX, top + 5), _RULE)
        top += _MARGIN_PX


def _wrapped(text: str) -> Iterator[str]:
    """Lines that fit the text column; Chinese breaks anywhere, other text between words."""
    font = _font(text)
    for paragraph in text.splitlines():
        line = ""
        for piece in re.findall(r"[\u2e80-\uffef]|[^\s\u2e80-\uffef]+\s*|\s+", paragraph):
            if line and font.getlength(line + piece.rstrip()) > _TEXT_PX:
                yield line
                line = ""
            line += piece
        yield line


def _font(text: str) -> FreeTypeFont:
    language: Language = "zh" if _HAN.search(text) else "en"
    return load_font(language, _SIZE_PX)
