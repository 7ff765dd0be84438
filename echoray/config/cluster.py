"""Where the jobs run."""

from __future__ import annotations

from pydantic import Field

from echoray.config.base import Section


class ClusterConfig(Section):
    """The Ray cluster and what a worker takes of it."""

    ray_address: str | None = Field(None, description="none given: a local Ray instance")
    cpus_per_worker: float = Field(8, gt=0)
    gpus_per_worker: float = Field(1, ge=0)
    object_store_bytes: int | None = Field(
        None, ge=78_643_200, description="shared memory of a local Ray instance"
    )
    dashboard: bool = False
