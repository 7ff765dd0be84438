"""Keyed pseudonyms: the only names of patients and studies outside of this package."""

from __future__ import annotations

import hashlib
import hmac
import uuid


def keyed_hash(key: bytes, value: str) -> str:
    """HMAC-SHA256 (hex) of ``value``; without the key it can be neither computed nor guessed from a list."""
    content = value.encode(errors="surrogatepass")  # the name of a file may be no UTF-8
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def keyed_uid(key: bytes, uid: str) -> str:
    """The DICOM UID in place of ``uid``: UUID-derived below 2.25 (PS3.5, B.2), one and the same per key."""
    word = hmac.new(key, b"uid\0" + uid.encode(), hashlib.sha256).digest()[:16]
    return f"2.25.{uuid.UUID(bytes=word, version=4).int}"
