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
    from echoray.platform.pipeline import Pipeline


@dataclass(frozen=True)
class Served:
    """A running endpoint; ``api_key`` is known only where this process made one."""

    url: str
    model_name: str
    api_key: str | None


@contextmanager
def served(steps: Pipeline, *, own_key: bool) -> Iterator[Served]:
    """Serve the stage 2 model inside the block and stop cleanly after it.

    With ``own_key`` a key that lives as long as the block is made; otherwise ``serve.api_keys_ref`` holds.
    """
    from echoray.serve.auth import new_api_key
    from echoray.serve.deploy import deploy, shutdown

    config = steps.run.serve
    version, folder = steps.version, steps.model_folder()
    with tempfile.TemporaryDirectory(prefix="echoray-key-") as secrets:
        plain = None
        if own_key:
            plain, digest = new_api_key()
            (Path(secrets) / "keys").touch(mode=0o600)
            (Path(secrets) / "keys").write_text(digest)
            config = config.model_copy(update={"api_keys_ref": f"file:{secrets}/keys"})
        try:
            url = deploy(config, steps.run.cluster, model_dir=folder, version=version)
            yield Served(url, config.model_name, plain)
        finally:
            shutdown()


def serve_until_interrupted(steps: Pipeline) -> None:
    """Serve with the configured keys until Ctrl-C or SIGTERM."""
    with served(steps, own_key=False) as endpoint:
        console.print(f"serving {endpoint.model_name} at {endpoint.url}/v1 (Ctrl-C stops)", soft_wrap=True)
        wait_for_interrupt()


def wait_for_interrupt() -> None:
    """Block until Ctrl-C or SIGTERM, which end in a normal return."""
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping")
