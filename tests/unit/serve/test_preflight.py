"""What is refused before a model is made for an endpoint that cannot start."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from echoray.config import ClusterConfig, ServeConfig
from echoray.errors import ConfigError, ServingError
from echoray.serve.auth import append_hash, new_api_key, read_hashes
from echoray.serve.preflight import free_port, require_startable

LOCAL, REMOTE = ClusterConfig(), ClusterConfig(ray_address="ray://head:10001")


def config(tmp_path: Path, **changes: object) -> ServeConfig:
    append_hash(tmp_path / "new" / "keys", new_api_key()[1])
    keys = f"file:{tmp_path}/new/keys"
    return ServeConfig.model_validate({"engine": "transformers", "port": 0, "api_keys_ref": keys, **changes})


def test_keys_are_required_wherever_the_endpoint_runs(tmp_path: Path) -> None:
    require_startable(config(tmp_path), LOCAL)
    for cluster in (LOCAL, REMOTE):
        with pytest.raises(ConfigError, match="No such file"):
            require_startable(config(tmp_path, api_keys_ref=f"file:{tmp_path}/none"), cluster)


def test_a_busy_port_is_refused_here_and_not_for_a_cluster(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ServingError, match=f"cannot listen on 127[.]0[.]0[.]1:{port}"):
            require_startable(config(tmp_path, port=port), LOCAL)
        require_startable(config(tmp_path, port=port), REMOTE)
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(ServingError, match=r"cannot listen on 203\.0\.113\.1:0"):  # nobody's address
        free_port("203.0.113.1", 0)


def test_vllm_must_be_installed_here_and_not_for_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServingError, match="not installed"):
        require_startable(config(tmp_path, engine="vllm"), LOCAL)
    require_startable(config(tmp_path, engine="vllm"), REMOTE)


def test_hashes_are_appended_to_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys"
    digests = [new_api_key()[1] for _ in range(2)]
    for digest in digests:
        append_hash(file, digest)
    assert read_hashes(f"file:{file}") == tuple(digests)
    assert file.stat().st_mode & 0o777 == 0o600
