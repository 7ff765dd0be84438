"""The tiny base: a small bilingual Qwen2-VL, pretrained on synthetic pictures and shipped with its recipe."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from echoray.config.model import EMBEDDED_BASE
from echoray.errors import ConfigError, ModelLoadError

WEIGHTS = Path(__file__).parent / "weights"
# Configuration, weights, chat template and vocabulary; not a README.
_BASE_SUFFIXES = {".json", ".safetensors", ".bin", ".jinja", ".txt", ".model"}


@cache
def embedded_base() -> Path:
    """The shipped model's directory; ModelLoadError where its weights do not match the recorded digest."""
    verify(WEIGHTS)
    return WEIGHTS


def verify(folder: Path) -> None:
    """Compare the weights in ``folder`` with the sha256 of its recipe.json."""
    try:
        expected = json.loads((folder / "recipe.json").read_text())["sha256"]
        with (folder / "model.safetensors").open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{folder}: incomplete base model ({error})", hint="install echoray again"
        ) from None
    if found != expected:
        raise ModelLoadError(
            f"{folder}: sha256 {found[:12]}..., expected {expected[:12]}...", hint="install echoray again"
        )


def resolve_base(name: str) -> Path:
    """The directory that ``model.base`` names: the embedded base, or a local Qwen2-VL directory.

    Raises ConfigError where there is none.
    """
    if name == EMBEDDED_BASE:
        return embedded_base()
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # ~user of nobody
        folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.base {name!r}: no config.json there",
            hint="download the Qwen2-VL directory first and name its path with --set model.base=PATH",
        )
    return folder


def base_digest(name: str) -> str:
    """What identifies the base in an artifact's plan: the names and the content of its files."""
    folder = resolve_base(name)
    summary = hashlib.sha256()
    for path in sorted(one for one in folder.iterdir() if one.suffix in _BASE_SUFFIXES):
        state = path.stat()
        summary.update(f"{path.name} {_sha256(path, state.st_size, state.st_mtime_ns)}\n".encode())
    return summary.hexdigest()


@cache
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """SHA-256 (hex) of a file, which is read again only where its size or time of change is another."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
