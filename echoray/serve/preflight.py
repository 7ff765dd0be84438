"""What can be known about an endpoint before there is a model: its keys, its address and its engine."""

from __future__ import annotations

import importlib.util
import socket

from echoray.config import ClusterConfig, ServeConfig
from echoray.errors import ServingError
from echoray.serve.auth import read_hashes


def require_startable(config: ServeConfig, cluster: ClusterConfig) -> None:
    """Refuse what would stop ``deploy`` after the model was trained.

    Raises ConfigError without API keys, ServingError when the address is taken or the engine is missing.
    On a cluster only the keys are looked at: the address and the engine are those of other machines.
    """
    read_hashes(config.api_keys_ref)
    if cluster.ray_address:
        return
    free_port(config.host, config.port)
    require_engine(config)


def require_engine(config: ServeConfig) -> None:
    """ServingError when the configured engine is not installed on this machine."""
    if config.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ServingError(
            "serve.engine is vllm, which is not installed",
            hint="`pip install 'echoray[vllm]'` on a GPU machine, or --set serve.engine=transformers",
        )


def free_port(host: str, port: int) -> int:
    """``port`` if nothing listens there, or a free one for 0; ServingError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {host}:{port} ({error.strerror})",
                hint="--set serve.port=0 takes a free port, serve.host is the address to listen on",
            ) from None
        return int(probe.getsockname()[1])
