"""API keys: made, stored as hashes, required."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from echoray.errors import ConfigError
from echoray.serve.auth import ApiKeys, new_api_key, read_hashes
from echoray.serve.protocol import RequestError


def test_a_new_key_opens_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    (first, digest), (second, other) = new_api_key(), new_api_key()
    assert digest == hashlib.sha256(first.encode()).hexdigest()
    assert first != second
    (tmp_path / "keys").write_text(f"{other}\n{digest.upper()}\n")
    keys = ApiKeys(read_hashes(f"file:{tmp_path / 'keys'}"))
    keys.require(f"Bearer {first}")
    keys.require(f"bearer  {second}")
    for wrong in (None, "", f"Basic {first}", f"Bearer {first[:-1]}", f"Bearer {digest}", first):
        with pytest.raises(RequestError) as refused:
            keys.require(wrong)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_missing_or_malformed_hashes_are_refused_without_showing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, digest = new_api_key()
    monkeypatch.setenv("TEST_HASHES", f"{digest} {key}")
    with pytest.raises(ConfigError, match="entry 2 is not a SHA-256") as refused:
        read_hashes("env:TEST_HASHES")
    assert key not in str(refused.value)
    monkeypatch.setenv("TEST_HASHES", "  ")
    with pytest.raises(ConfigError, match="empty"):
        read_hashes("env:TEST_HASHES")
    with pytest.raises(ConfigError, match="No such file"):
        read_hashes(f"file:{tmp_path / 'none'}")
