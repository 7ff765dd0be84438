"""Run a stage on Ray Train and turn its result into an artifact; load and export what it made."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.leaks import require_audit
from echoray.errors import EchoRayError, InputDataError, TrainingError
from echoray.storage import Store, store_of
from echoray.train.job import METRICS, SUMMARY, WEIGHTS, StageJob, StageName, enter_worker, stage_config
from echoray.train.telemetry import monitored
from echoray.types import ArtifactRef, Progress

if TYPE_CHECKING:
    import torch

    from echoray.model.modeling import EchoVLMForConditionalGeneration

_LABELS = {"align": "stage 1", "finetune": "stage 2"}
# What decides a stage's result; the number of workers and the checkpoints do not.
_DECIDING = {"precision", "weight_decay", "gradient_clip", "balance_weight"}
_NOT_DECIDING = {"checkpoint_every_steps"}


def train_stage(
    run: RunConfig, stage: StageName, *, shards: ArtifactRef, parent: ArtifactRef | None, progress: Progress
) -> ArtifactRef:
    """Train a stage, or return its finished artifact ("checkpoint": trained weights, summary and metrics).

    A worker that dies is started again from the last checkpoint, ``train.max_failures`` times; a run whose
    driver died goes on from there when it is started again. Ray must be initialised.
    Raises TrainingError (loss not finite, workers lost), InputDataError (no examples), ModelLoadError.
    """
    from echoray.model.base import base_digest

    store = store_of(run)
    config = {
        "stage": stage,
        "settings": stage_config(run, stage).model_dump(mode="json", exclude=_NOT_DECIDING),
        "train": run.train.model_dump(mode="json", include=_DECIDING),
        "model": run.model.model_dump(mode="json"),
        "base": base_digest(run.model.base),
        "seed": run.seed,
    }
    parents = [shards, *([parent] if parent else [])]
    ref = artifacts.plan("checkpoint", f"{run.name}-{stage}", config=config, parents=parents)
    if artifacts.find(store, ref) is None:
        _require_inputs(store, shards, parent)
        artifacts.clear(store, ref)
        _fit(StageJob(run, stage, shards, parent, ref), progress)
        summary = json.loads(store.read_bytes(f"{ref.path}/{SUMMARY}"))
        files = dict.fromkeys((WEIGHTS, SUMMARY, METRICS))
        artifacts.seal(store, ref, config=config, parents=parents, counts=summary, digests=files)
    store.delete(f"runs/{_run_name(ref)}")
    return ref


def _require_inputs(store: Store, shards: ArtifactRef, parent: ArtifactRef | None) -> None:
    manifest = artifacts.require(store, shards, made_by="echoray data tokenize")
    if not store.list(f"{shards.path}/train"):
        raise InputDataError(
            f"{store.uri(shards.path)}: no training examples",
            hint="read the shards' ledger.json; add studies",
        )
    require_audit(store, manifest)
    if parent is not None:
        artifacts.require(store, parent, made_by="echoray train align")


def _run_name(ref: ArtifactRef) -> str:
    return f"{ref.name}-{ref.digest[:8]}"


def _fit(job: StageJob, progress: Progress) -> None:
    import ray
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster, settings = job.run.cluster, job.run.train
    on_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if on_gpu else {})
    with monitored(_LABELS[job.stage], progress) as monitor:
        trainer = TorchTrainer(
            enter_worker,
            train_loop_config={"job": job, "monitor": monitor},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=settings.num_workers, use_gpu=on_gpu, resources_per_worker=resources
            ),
            run_config=train.RunConfig(
                name=_run_name(job.target),
                failure_config=train.FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=train.CheckpointConfig(num_to_keep=2),
                **_storage(job.store),
            ),
        )
        try:
            _fit_interruptibly(trainer)
        except train.TrainingFailedError as error:
            failure: EchoRayError | None = ray.get(monitor.failure.remote())
            raise failure or _lost(error, settings.max_failures) from None
        failure = ray.get(monitor.failure.remote())
    if failure is not None:
        raise failure


def _fit_interruptibly(trainer: Any) -> None:
    """``trainer.fit()`` beside the main thread, where Ray would take over Ctrl-C and never give it back."""
    outcome: Future[Any] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    outcome.result()


def _lost(error: Exception, max_failures: int) -> TrainingError:
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return TrainingError(
        f"training workers failed more often than max_failures ({max_failures}), last: {last}",
        hint="read the workers' logs in Ray's session folder; the same command goes on where it ended",
    )


def _storage(store: Store) -> dict[str, Any]:
    """Where Ray Train keeps the checkpoints of an unfinished stage: runs/ in the store."""
    if store.scheme == "file":
        return {"storage_path": store.key("runs")}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {
        "storage_path": store.key("runs"),
        "storage_filesystem": PyFileSystem(FSSpecHandler(store.filesystem())),
    }


def load_checkpoint(
    run: RunConfig, ref: ArtifactRef, *, dtype: torch.dtype | None = None
) -> EchoVLMForConditionalGeneration:
    """Rebuild the model of a stage: the upcycled base, then the trained weights of every stage up to ``ref``.

    ``dtype`` is float32 where none is given.
    """
    import torch

    from echoray.model.base import resolve_base
    from echoray.model.upcycle import upcycle
    from echoray.train.checkpoint import apply_checkpoint

    base = resolve_base(run.model.base)
    model = upcycle(base, run.model, seed=run.seed, dtype=dtype or torch.float32)
    apply_checkpoint(run, model, ref)
    return model.eval()


def export_checkpoint(run: RunConfig, ref: ArtifactRef) -> ArtifactRef:
    """Merge a stage into one model directory (artifact kind "model"), or return the finished one."""
    from echoray.data.conversations import SYSTEM_PROMPT
    from echoray.model.base import resolve_base
    from echoray.model.export import export_model

    store = store_of(run)
    manifest = artifacts.require(store, ref, made_by="echoray train finetune")
    pictures = {"image_size_px": run.data.image_size_px, "image_layout": run.data.image_layout}
    config = {"format": 3, **pictures}
    target = artifacts.plan("model", ref.name, config=config, parents=[ref])

    def build(folder: Path) -> Mapping[str, Any]:
        made_from = artifacts.lineage(store, ref)
        metadata = {
            "name": ref.name,
            "version": target.digest[:8],
            **pictures,
            "system_prompt": dict(SYSTEM_PROMPT),
            "lineage": {one.path: dict(counts) for one, counts in made_from},
            "training": [dict(counts) for one, counts in reversed(made_from) if one.kind == ref.kind],
        }
        export_model(load_checkpoint(run, ref), resolve_base(run.model.base), folder, metadata=metadata)
        return {"stage": manifest.counts["stage"]}

    artifacts.produce(store, target, build, config=config, parents=[ref])
    return target
