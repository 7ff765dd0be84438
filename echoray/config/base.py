"""The base of every configuration section: frozen, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen configuration section; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def canonical_json(value: Any) -> str:
    """Serialise ``value`` so that equal content gives equal text (sorted keys, no spaces)."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    # Names of files may hold bytes that are no UTF-8, which Python reads as lone surrogates.
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()
