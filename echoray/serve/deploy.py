"""Put the endpoint on the connected Ray instance, and take it down."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from echoray.config import ClusterConfig, ServeConfig
from echoray.errors import ServingError
from echoray.serve.exported import read_exported
from echoray.serve.preflight import free_port
from echoray.serve.settings import EndpointSettings
from echoray.types import ModelVersion

_APP_NAME = "echoray"
# Serve's timeout would cut a stream in mid-body without a word; ours ends it with an error event before that.
_BACKSTOP_S = 30.0
_STOP_TIMEOUT_S = 60.0


def deploy(
    config: ServeConfig, cluster: ClusterConfig, *, model_dir: Path, version: ModelVersion | None = None
) -> str:
    """Serve ``model_dir`` on the connected Ray instance and return the base URL once it is ready.

    Raises ConfigError without API keys, ModelLoadError for a directory that is no model, ServingError when
    the address is taken, Ray serves already, or the model does not start; nothing of it then stays up, and
    what others serve is left alone.
    """
    from echoray.serve.deployment import build_app

    # Importing Serve resets its logger to INFO, which would write to the terminal.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    exported = read_exported(model_dir.absolute())
    settings = EndpointSettings(
        serve=config,
        model_dir=exported.folder,
        model_version=exported.version if version is None else f"{version.name}-v{version.version}",
        cpus_per_replica=cluster.cpus_per_worker,
        gpus_per_replica=cluster.gpus_per_worker,
    )
    app = build_app(settings.model_dump(mode="json"))
    if _controller() is not None:
        raise ServingError("this Ray instance serves already", hint="stop the running endpoint first")
    port = free_port(config.host, config.port)
    try:
        _run(app, config, port)
    except BaseException as error:  # Ctrl-C while the model loads, too
        shutdown()
        if not isinstance(error, RuntimeError):
            raise
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ServingError(
            f"the endpoint did not start: {cause}",
            hint="see the replica's log below /tmp/ray/session_latest/logs",
        ) from None
    return f"http://{_reachable(config.host)}:{port}"


def _run(app: Any, config: ServeConfig, port: int) -> None:
    """Start Serve with ``app`` and return when it is ready."""
    from ray import serve

    serve.start(
        http_options={
            "host": config.host,
            "port": port,
            "request_timeout_s": config.request_timeout_s + _BACKSTOP_S,
        },
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.run(app, name=_APP_NAME, route_prefix="/")


def shutdown() -> None:
    """Stop the endpoint: finish what runs, then free the model and the address; Ray stays up."""
    import ray
    from ray import serve

    # serve.shutdown() alone waits on a task of the controller that is killed under it, and Ray then writes
    # about the failed task to standard output.
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    controller = _controller()
    if controller is not None:
        ray.get(controller.graceful_shutdown.remote(wait=False))
        while _controller() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
    serve.shutdown()


def _controller() -> Any:
    """Serve's controller, which lives as long as anything is served on this Ray; None when there is none."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    with contextlib.suppress(ValueError):  # no actor of that name
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    return None


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", "::"}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
