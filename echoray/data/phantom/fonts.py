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

_LATIN = ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf", 0)
_CHINESE = ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc", 2)  # face 2 of the collection: simplified Chinese


@lru_cache(maxsize=16)
def load_font(language: Language, size_px: int) -> FreeTypeFont:
    """DejaVu Sans (from matplotlib), or Noto Sans CJK SC for Chinese; InputDataError when not installed."""
    from PIL import ImageFont

    package, name, face = _CHINESE if language == "zh" else _LATIN
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise InputDataError(
            f"burned-in text ({language}) needs the font package {distribution}, which is not installed",
            hint=f"pip install {distribution}, or write the synthetic corpus in English",
        )
    return ImageFont.truetype(
        str(Path(next(iter(spec.submodule_search_locations))) / name), size_px, index=face
    )
