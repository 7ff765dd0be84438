"""Put the endpoint on the connected Ray instance, and take it down."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from pathlib import Path

from echoray.config import ClusterConfig, ServeConfig
from echoray.errors import ServingError
from echoray.serve.exported import read_exported
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
    the address is taken, Ray serves already, or the model does not start.
    """
    from ray import serve

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
    if serve.status().proxies:
        raise ServingError("this Ray instance serves already", hint="stop the running endpoint first")
    port = _free_port(config.host, config.port)
    try:
        serve.start(
            http_options={
                "host": config.host,
                "port": port,
                "request_timeout_s": config.request_timeout_s + _BACKSTOP_S,
            },
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(app, name=_APP_NAME, route_prefix="/")
    except RuntimeError as error:
        serve.shutdown()
        cause = str(error).strip().splitlines()[-1]
        raise ServingError(
            f"the endpoint did not start: {cause}",
            hint="see the replica's log below /tmp/ray/session_latest/logs",
        ) from None
    return f"http://{_reachable(config.host)}:{port}"


def shutdown() -> None:
    """Stop the endpoint: finish what runs, then free the model and the address; Ray stays up."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    # serve.shutdown() alone waits on a task of the controller that is killed under it, and Ray then writes
    # about the failed task to standard output.
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    with contextlib.suppress(ValueError):  # no controller of that name: gone, or never there
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False))
        while time.monotonic() < deadline:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            time.sleep(0.1)
    serve.shutdown()


def _free_port(host: str, port: int) -> int:
    """``port`` if nothing listens there, or a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {host}:{port} ({error.strerror})", hint="set serve.port=0 for a free one"
            ) from None
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", "::"}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
