"""Everything a replica needs, as one value that Ray can carry and a RayService manifest can write down."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from echoray.config import ServeConfig
from echoray.config.base import Section


class EndpointSettings(Section):
    """Arguments of ``services.endpoint:build_app``."""

    serve: ServeConfig = ServeConfig()
    model_dir: Path
    model_version: str = Field("", description="shown to clients; none given: the one of echoray.json")
    cpus_per_replica: float = Field(1, ge=0)
    gpus_per_replica: float = Field(0, ge=0)
