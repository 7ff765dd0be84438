"""Keyed pseudonyms: the only names of patients and studies outside of this package."""

from __future__ import annotations

import hashlib
import hmac


def keyed_hash(key: bytes, value: str) -> str:
    """HMAC-SHA256 (hex) of ``value``; without the key it can be neither computed nor guessed from a list."""
    content = value.encode(errors="surrogatepass")  # the name of a file may be no UTF-8
    return hmac.new(key, content, hashlib.sha256).hexdigest()
