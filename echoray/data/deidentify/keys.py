"""Keyed pseudonyms: the only names of patients and studies outside of this package."""

from __future__ import annotations

import hashlib
import hmac


def keyed_hash(key: bytes, value: str) -> str:
    """HMAC-SHA256 (hex) of ``value``; without the key it can be neither computed nor guessed from a list."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()
