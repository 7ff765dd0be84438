"""One run: every section, the seed and the workspace."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from echoray.config.base import Section
from echoray.config.cluster import ClusterConfig
from echoray.config.data import DataConfig
from echoray.config.evaluate import EvaluateConfig
from echoray.config.instruct import InstructConfig
from echoray.config.model import ModelConfig
from echoray.config.serve import ServeConfig
from echoray.config.storage import StorageConfig
from echoray.config.train import TrainConfig


class RegistryConfig(Section):
    """The MLflow server that keeps runs and model versions."""

    tracking_uri: str | None = Field(None, description="none given: SQLite in the workspace (file:// only)")
    model_name: str = Field("echovlm", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")


class RunConfig(Section):
    """The whole configuration tree; ``echoray config schema`` prints its JSON schema."""

    name: str = Field("echovlm", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    seed: int = Field(20260101, ge=0)
    workspace: str = Field("file://./echoray-workspace", description="file:// or s3:// root of all artifacts")
    storage: StorageConfig = StorageConfig()
    data: DataConfig = DataConfig()
    instruct: InstructConfig = InstructConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: RegistryConfig = RegistryConfig()
    serve: ServeConfig = ServeConfig()
    cluster: ClusterConfig = ClusterConfig()

    def merged(self, changes: dict[str, Any]) -> RunConfig:
        """Return a validated copy with ``changes`` (a nested mapping) applied."""
        return RunConfig.model_validate(deep_merge(self.model_dump(mode="json"), changes))


def deep_merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it; mappings merge, everything else replaces."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
