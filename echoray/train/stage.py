"""Run a stage on Ray Train and turn its result into an artifact; export a stage as one model directory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.conversations import SYSTEM_PROMPT
from echoray.model.base import base_digest, resolve_base
from echoray.model.export import export_model
from echoray.storage import Store
from echoray.train.checkpoint import METRICS, WEIGHTS, load_checkpoint, store_of
from echoray.train.telemetry import reported_progress
from echoray.train.worker import StageJob, run_worker
from echoray.types import ArtifactRef, Progress

_LABELS = {"align": "stage 1", "finetune": "stage 2"}


def train_stage(
    run: RunConfig,
    stage: Literal["align", "finetune"],
    *,
    shards: ArtifactRef,
    parent: ArtifactRef | None,
    progress: Progress,
) -> ArtifactRef:
    """Train a stage, or return its finished artifact ("checkpoint": trained weights and metrics).

    A worker that dies is restarted from the last checkpoint, ``train.max_failures`` times; a run whose driver
    died goes on from there when it is started again. Ray must be initialised.
    """
    store = store_of(run)
    job = StageJob(run, stage, shards, parent)
    config = {
        "stage": stage,
        "settings": job.config.model_dump(mode="json"),
        "train": run.train.model_dump(mode="json", exclude={"align", "finetune", "max_failures"}),
        "model": run.model.model_dump(mode="json"),
        "base": base_digest(run.model.base),
        "seed": run.seed,
    }
    parents = [shards, *([parent] if parent else [])]
    ref = artifacts.plan("checkpoint", f"{run.name}-{stage}", config=config, parents=parents)

    def build(folder: Path) -> Mapping[str, Any]:
        last = _fit(job, store, ref, progress, folder)
        return {"stage": stage, **last}

    artifacts.produce(store, ref, build, config=config, parents=parents)
    store.delete(_run_path(ref))
    return ref


def _run_path(ref: ArtifactRef) -> str:
    return f"runs/{ref.name}-{ref.digest[:8]}"


def _fit(
    job: StageJob, store: Store, ref: ArtifactRef, progress: Progress, folder: Path
) -> Mapping[str, Any]:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = job.run.cluster
    on_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if on_gpu else {})
    with reported_progress(_LABELS[job.stage], progress) as counter:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": job, "counter": counter},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=job.run.train.num_workers, use_gpu=on_gpu, resources_per_worker=resources
            ),
            run_config=train.RunConfig(
                name=f"{ref.name}-{ref.digest[:8]}",
                storage_path=store.key("runs") if store.scheme == "file" else store.uri("runs"),
                failure_config=train.FailureConfig(max_failures=job.run.train.max_failures),
                checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            ),
        )
        result = trainer.fit()
    with result.checkpoint.as_directory() as source:
        for name in (WEIGHTS, METRICS):
            shutil.copyfile(Path(source) / name, folder / name)
    return {"steps": int(result.metrics["step"])}


def export_checkpoint(run: RunConfig, ref: ArtifactRef) -> ArtifactRef:
    """Merge a stage into one model directory (artifact kind "model"), or return the finished one."""
    store = store_of(run)
    manifest = artifacts.require(store, ref, made_by="echoray train finetune")
    config = {"format": 1, "image_size_px": run.data.image_size_px}
    target = artifacts.plan("model", ref.name, config=config, parents=[ref])

    def build(folder: Path) -> Mapping[str, Any]:
        metadata = {
            "name": ref.name,
            "version": target.digest[:8],
            "image_size_px": run.data.image_size_px,
            "system_prompt": dict(SYSTEM_PROMPT),
            "lineage": [ref.path, *(parent.path for parent in manifest.parents)],
        }
        export_model(load_checkpoint(run, ref), resolve_base(run.model.base), folder, metadata=metadata)
        return {"stage": manifest.counts["stage"]}

    artifacts.produce(store, target, build, config=config, parents=[ref])
    return target
