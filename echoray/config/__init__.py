"""The one configuration tree; see ``run.RunConfig``."""

from echoray.config.base import canonical_json, digest
from echoray.config.cluster import ClusterConfig
from echoray.config.data import DataConfig, PhantomConfig
from echoray.config.evaluate import EvaluateConfig
from echoray.config.load import load_run, run_digest, secret
from echoray.config.model import ModelConfig
from echoray.config.run import RegistryConfig, RunConfig
from echoray.config.serve import ServeConfig
from echoray.config.storage import S3Access, StorageConfig
from echoray.config.train import LoraConfig, StageConfig, TrainConfig

__all__ = [
    "ClusterConfig",
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "PhantomConfig",
    "RegistryConfig",
    "RunConfig",
    "S3Access",
    "ServeConfig",
    "StageConfig",
    "StorageConfig",
    "TrainConfig",
    "canonical_json",
    "digest",
    "load_run",
    "run_digest",
    "secret",
]
