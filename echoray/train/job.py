"""What the driver hands to its workers: plain data, and no framework, so that any process can read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from echoray.config import RunConfig, StageConfig
from echoray.storage import Store, store_of
from echoray.types import ArtifactRef

StageName = Literal["align", "finetune"]

# Files of a "checkpoint" artifact.
WEIGHTS = "model.safetensors"
SUMMARY = "stage.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class StageJob:
    """One stage of one run: where it starts from, what it learns from and which artifact it makes."""

    run: RunConfig
    stage: StageName
    shards: ArtifactRef
    parent: ArtifactRef | None
    target: ArtifactRef

    @property
    def config(self) -> StageConfig:
        """The stage's own settings."""
        return stage_config(self.run, self.stage)

    @property
    def store(self) -> Store:
        """The store that holds the run's artifacts."""
        return store_of(self.run)


def stage_config(run: RunConfig, stage: StageName) -> StageConfig:
    """The settings of ``stage``."""
    return run.train.align if stage == "align" else run.train.finetune


def enter_worker(arguments: dict[str, Any]) -> None:
    """Ray Train's ``train_loop_per_worker``; the frameworks are loaded here, in the worker only."""
    from echoray.train.worker import run_worker

    run_worker(arguments["job"], arguments["monitor"])
