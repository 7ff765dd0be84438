"""The one Ray instance of a command: connect, keep quiet, always shut down."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from echoray.config import ClusterConfig
from echoray.errors import EchoRayError

# What holds for the driver wherever its workers run.
_DRIVER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DEDUP_LOGS": "1",
    # Ray's C++ core writes to the terminal of the driver, past Python's logging, what is no error to anybody.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    # A thread that calls Ray after an interrupted step has shut it down gets an error, and not a new instance
    # that nobody ends.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Which weights are new after upcycling is checked by our own loader; transformers' report of it is noise.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# What the workers of a local instance inherit. A cluster's workers have the environment of their pod
# template, past which Ray Train would carry some of these: they are not set for a cluster.
_LOCAL_ENV = {
    # On few cores more than one thread per process is slower, not faster (oversubscription).
    "OMP_NUM_THREADS": "1",
    # glibc gives large tensors back to the kernel after each use, and the page faults of getting them again
    # took a quarter of a CPU training step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Hold a connection to ``cluster.ray_address``, or a local Ray instance that ends with the block.

    Without an address the instance is a new one, whatever RAY_ADDRESS says and ``ray start`` has started;
    the address "auto" takes those. Raises EchoRayError where there is no Ray to be had.
    """
    environment = _DRIVER_ENV if cluster.ray_address else {**_DRIVER_ENV, **_LOCAL_ENV}
    if not cluster.ray_address and not cluster.gpus_per_worker:
        environment = {**environment, "DS_ACCELERATOR": "cpu"}  # DeepSpeed warns where it has to guess
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    quiet()
    _connect(cluster)
    import ray

    try:
        yield
    except BaseException as error:
        # The frames in which a step was interrupted hold its Ray Data execution, and that asks Ray for the
        # cluster's size when it is collected: let it go while Ray is there to answer.
        _let_go(error)
        raise
    finally:
        ray.shutdown()


def _let_go(error: BaseException | None) -> None:
    """Collect what the frames of an error, and of the errors that it came up in, hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def quiet() -> None:
    """Keep libraries' chatter off the terminal; warnings and errors still come through."""
    for name in ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune", "alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _connect(cluster: ClusterConfig) -> None:
    import ray

    _require_listener(cluster.ray_address, os.environ)
    try:
        with _sigterm_handler_kept():
            ray.init(**_init_arguments(cluster))
    except SystemExit:  # Ray's own handler, while it starts
        ray.shutdown()
        raise KeyboardInterrupt from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreachable(cluster.ray_address, str(error)) from None


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Put the caller's handler back: ray.init leaves one behind that ends the process without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _require_listener(address: str | None, environment: Mapping[str, str]) -> None:
    """Refuse a host and port at which nothing listens: Ray would try for minutes, then kill the process."""
    if address == "auto":
        address = environment.get("RAY_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return  # a local instance, ray:// (which gives up by itself), or nothing Ray takes
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None


def _unreachable(address: str | None, reason: str) -> EchoRayError:
    if address is None:
        return EchoRayError(
            f"no local Ray instance could be started: {reason}",
            hint="see /tmp/ray/session_latest/logs; a smaller cluster.object_store_bytes needs less memory",
        )
    return EchoRayError(
        f"no Ray cluster answers at {address}: {reason}",
        hint="check cluster.ray_address and RAY_ADDRESS, or leave them out to start a local Ray instance",
    )


def _init_arguments(cluster: ClusterConfig) -> dict[str, Any]:
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.ray_address:
        return {**common, "address": cluster.ray_address, "ignore_reinit_error": False}
    # Logical CPUs above the real count let light actors (Serve's proxy, Train's controller) start beside
    # the workers on a two-core machine; Ray uses the number for placement only.
    cpus = max(os.cpu_count() or 1, 6)
    return {
        **common,
        "address": "local",
        "num_cpus": cpus,
        "include_dashboard": cluster.dashboard,
        "object_store_memory": cluster.object_store_bytes or 1 << 30,
        "configure_logging": True,
    }
