"""What an exported model directory says about itself: its size, its prompts, its version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from echoray.data.conversations import SYSTEM_PROMPT
from echoray.errors import ModelLoadError
from echoray.model.export import METADATA_FILE
from echoray.types import ImageLayout

DISCLAIMER = (
    "Research software, not a medical device. Answers are drafts for a clinician, who remains responsible "
    "for every statement."
)
# Qwen2-VL's own default budget is far larger; directories without echoray.json get a moderate one.
_DEFAULT_IMAGE_SIZE_PX = 448


@dataclass(frozen=True)
class ExportedModel:
    """A model directory and its metadata."""

    folder: Path
    image_size_px: int
    image_layout: ImageLayout
    system_prompt: Mapping[str, str]  # by language
    version: str
    context_tokens: int
    architecture: str


def read_exported(folder: Path) -> ExportedModel:
    """Read config.json and echoray.json of ``folder``; the latter may be missing or partial.

    Raises ModelLoadError when the directory is no model or its metadata is damaged.
    """
    config = _json(folder / "config.json")
    metadata = _json(folder / METADATA_FILE) if (folder / METADATA_FILE).exists() else {}
    text = config.get("text_config") or config
    try:
        return ExportedModel(
            folder=folder,
            image_size_px=int(metadata.get("image_size_px", _DEFAULT_IMAGE_SIZE_PX)),
            image_layout=_layout(metadata),
            system_prompt=dict(metadata.get("system_prompt", SYSTEM_PROMPT)),
            version=str(metadata.get("version", "unversioned")),
            context_tokens=int(text["max_position_embeddings"]),
            architecture=str((config.get("architectures") or ["unknown"])[0]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"{folder}: metadata not usable ({type(error).__name__}: {error})", hint="export the model again"
        ) from None


def _layout(metadata: Mapping[str, Any]) -> ImageLayout:
    # Metadata that names no layout is older than the choice, and its model was trained on squares.
    found = metadata.get("image_layout", "square" if "image_size_px" in metadata else "dynamic")
    if found not in get_args(ImageLayout):
        raise ValueError(f"image_layout is {found!r}, expected one of {get_args(ImageLayout)}")
    layout: ImageLayout = found
    return layout


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{path}: not readable ({type(error).__name__})", hint="name a directory that an export wrote"
        ) from None
