"""API keys: only SHA-256 hashes are kept, and they are compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from echoray.config import secret
from echoray.errors import ConfigError, UsageError
from echoray.serve.protocol import RequestError

_PREFIX = "echoray-"
_HASH = re.compile(r"[0-9a-f]{64}")


def new_api_key() -> tuple[str, str]:
    """A random key (256 bits) and its SHA-256 (hex); only the latter is to be stored."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, hash_of(key)


def hash_of(key: str) -> str:
    """SHA-256 (hex) of a key. Keys are random, so no slow password hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def append_hash(file: Path, digest: str) -> None:
    """Add an accepted key's hash to ``file``, which is made (mode 0600) where it is missing.

    Raises UsageError where it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        with file.open("a") as handle:
            handle.write(f"{digest}\n")
    except OSError as error:
        raise UsageError(
            f"cannot write {file}: {error.strerror}", hint="name a file in a folder that you may write to"
        ) from None


def read_hashes(reference: str) -> tuple[str, ...]:
    """The accepted hashes that ``env:NAME`` or ``file:PATH`` lists, separated by white space.

    Raises ConfigError when there is none or an entry is no SHA-256.
    """
    hashes = tuple(secret(reference).lower().split())
    wrong = [index for index, one in enumerate(hashes, start=1) if not _HASH.fullmatch(one)]
    if wrong:
        raise ConfigError(
            f"{reference}: entry {wrong[0]} is not a SHA-256 in hex (64 digits)",
            hint="`echoray serve key FILE` makes a key and appends its hash",
        )
    return hashes


class ApiKeys:
    """The accepted keys, as hashes."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = tuple(hashes)

    def require(self, authorization: str | None) -> None:
        """Check an Authorization header; RequestError (401) unless it bears an accepted key."""
        scheme, _, key = (authorization or "").partition(" ")
        presented = hash_of(key.strip())
        # Every hash is compared, so that the time taken does not depend on which one matches.
        matches = [hmac.compare_digest(presented, one) for one in self._hashes]
        if scheme.lower() != "bearer" or not any(matches):
            raise RequestError(
                "missing or unknown API key",
                hint="send `Authorization: Bearer KEY`",
                status=401,
                code="invalid_api_key",
            )
