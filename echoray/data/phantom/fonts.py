"""Fonts for burned-in text, from Python packages only (nothing from the system)."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from echoray.errors import InputDataError
from echoray.types import Language

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_CHINESE = ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc", 2)  # face 2 of the collection: simplified Chinese
_MATPLOTLIB = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
               "STIXGeneral", "STIXGeneralBol")  # fmt: skip
_FILES = {"NotoSansCJK": _CHINESE} | {
    name: ("matplotlib", f"mpl-data/fonts/ttf/{name}.ttf", 0) for name in _MATPLOTLIB
}
FACES: dict[Language, tuple[str, ...]] = {"en": tuple(_FILES), "zh": ("NotoSansCJK",)}  # what can be written


def load_font(language: Language, size_px: int) -> FreeTypeFont:
    """DejaVu Sans (from matplotlib), or Noto Sans CJK SC for Chinese; InputDataError when not installed."""
    return load_face("NotoSansCJK" if language == "zh" else "DejaVuSans", size_px)


@lru_cache(maxsize=64)
def load_face(face: str, size_px: int) -> FreeTypeFont:
    """One of ``FACES``; InputDataError when its package is not installed."""
    from PIL import ImageFont

    package, name, number = _FILES[face]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise InputDataError(
            f"burned-in text in {face} needs the font package {distribution}, which is not installed",
            hint=f"pip install {distribution}, or write the synthetic corpus in English",
        )
    return ImageFont.truetype(
        str(Path(next(iter(spec.submodule_search_locations))) / name), size_px, index=number
    )
