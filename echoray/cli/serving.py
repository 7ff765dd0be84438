"""Bring a model up behind the endpoint for as long as a block, or until Ctrl-C."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from echoray.cli.console import console

if TYPE_CHECKING:
    from echoray.config import ServeConfig
    from echoray.platform.pipeline import Pipeline


@dataclass(frozen=True)
class Served:
    """A running endpoint; ``api_key`` is known only where this process made one."""

    url: str
    model_name: str
    api_key: str | None


@contextmanager
def served(steps: Pipeline, *, for_demo: bool) -> Iterator[Served]:
    """Serve the stage 2 model inside the block and stop cleanly after it.

    For the demo a key that lives as long as the block is made, and a free port is taken where the configured
    one cannot be had; otherwise ``serve.api_keys_ref`` and ``serve.port`` hold.
    """
    from echoray.serve.deploy import deploy, shutdown

    config = steps.run.serve
    version, folder = steps.version, steps.model_folder()
    with tempfile.TemporaryDirectory(prefix="echoray-key-") as secrets:
        plain = None
        if for_demo:
            plain, keys = _key_file(Path(secrets))
            config = config.model_copy(update={"api_keys_ref": keys, "port": _port_to_be_had(config)})
        # Outside of the try: a deploy that refuses has cleaned up, and the endpoint it found is not ours.
        url = deploy(config, steps.run.cluster, model_dir=folder, version=version)
        try:
            yield Served(url, config.model_name, plain)
        finally:
            shutdown()


def _key_file(folder: Path) -> tuple[str, str]:
    """A new API key and the reference to a file with its hash."""
    from echoray.serve.auth import append_hash, new_api_key

    plain, digest = new_api_key()
    append_hash(folder / "keys", digest)
    return plain, f"file:{folder}/keys"


def _port_to_be_had(config: ServeConfig) -> int:
    """The configured port, or 0 (a free one) with a word about it where that is not to be had."""
    from echoray.errors import ServingError
    from echoray.serve.preflight import free_port

    try:
        return free_port(config.host, config.port)
    except ServingError as error:
        console.print(f"{error.message}: taking a free port instead")
        return 0


def serve_until_interrupted(steps: Pipeline) -> None:
    """Serve with the configured keys until Ctrl-C or SIGTERM."""
    with served(steps, for_demo=False) as endpoint:
        console.print(f"serving {endpoint.model_name} at {endpoint.url}/v1 (Ctrl-C stops)", soft_wrap=True)
        wait_for_interrupt()


def wait_for_interrupt() -> None:
    """Block until Ctrl-C or SIGTERM, which end in a normal return."""
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping")
