"""The one Ray instance of a command: connect, keep quiet, always shut down."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from echoray.config import ClusterConfig
from echoray.errors import EchoRayError

# On few cores more than one thread per process is slower, not faster (oversubscription); GPU machines set
# their own value in the pod template.
_LOCAL_ENV = {
    "OMP_NUM_THREADS": "1",
    # glibc gives large tensors back to the kernel after each use, and the page faults of getting them again
    # took a quarter of a CPU training step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Hold a connection to ``cluster.ray_address``, or a local Ray instance that ends with the block."""
    for name, value in _LOCAL_ENV.items():
        os.environ.setdefault(name, value)
    import ray

    quiet()
    try:
        ray.init(**_init_arguments(cluster))
    except (ConnectionError, ValueError) as error:
        raise EchoRayError(
            f"no Ray cluster answers at {cluster.ray_address}: {error}",
            hint="check cluster.ray_address, or leave it out to start a local Ray instance",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def quiet() -> None:
    """Keep libraries' chatter off the terminal; warnings and errors still come through."""
    for name in ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune", "mlflow", "alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _init_arguments(cluster: ClusterConfig) -> dict[str, Any]:
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.ray_address:
        return {**common, "address": cluster.ray_address, "ignore_reinit_error": False}
    # Logical CPUs above the real count let light actors (Serve's proxy, Train's controller) start beside
    # the workers on a two-core machine; Ray uses the number for placement only.
    cpus = max(os.cpu_count() or 1, 6)
    return {
        **common,
        "num_cpus": cpus,
        "include_dashboard": cluster.dashboard,
        "object_store_memory": cluster.object_store_bytes or 1 << 30,
        "configure_logging": True,
    }
