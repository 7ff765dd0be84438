"""Real ultrasound conversations, which may lie beside a checkout but are no part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

PUBLIC_TEXT = Path(__file__).parents[2] / "shared" / "data" / "public_text"
needs_public_text = pytest.mark.skipif(
    not PUBLIC_TEXT.is_dir(), reason="the public conversations are not beside this checkout"
)
