"""What each Ray Train worker runs: build the model, shard it with DeepSpeed, step through the cursor."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echoray import artifacts
from echoray.data.batch import Example, blank, load_examples, pack
from echoray.data.cursor import Cursor, micro_batches, num_steps
from echoray.errors import InputDataError, TrainingError, UsageError
from echoray.model.base import resolve_base
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import STAGES, apply_stage
from echoray.model.upcycle import upcycle
from echoray.train.checkpoint import apply_checkpoint, load_progress, save_final, save_progress
from echoray.train.job import StageJob
from echoray.train.loop import StepTotals, TrainingModel, to_tensors, train_step
from echoray.train.telemetry import metrics_row
from echoray.train.zero import start_engine


@dataclass(frozen=True)
class Place:
    """Which worker this is, and of how many."""

    rank: int
    world_size: int
    device: torch.device


def run_worker(job: StageJob, monitor: Any) -> None:
    """Train a stage to its end; rank 0 uploads the artifact's files.

    Errors that a restart cannot cure go to ``monitor``, and the workers that Ray Train starts after one end
    at once.
    """
    import ray.train.torch

    if ray.get(monitor.failure.remote()) is not None:
        return
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    if place.device.type == "cpu":
        torch.set_num_threads(1)  # on few cores more threads than workers are slower
    try:
        _train(job, place, monitor)
    except (UsageError, TrainingError) as error:
        ray.get(monitor.fail.remote(error))
        raise


def build_model(job: StageJob) -> EchoVLMForConditionalGeneration:
    """The model as the stage begins: upcycled, the parent's weights in place, the rest frozen."""
    run = job.run
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    model = upcycle(resolve_base(run.model.base), run.model, seed=run.seed, dtype=dtype)
    if job.parent is not None:
        apply_checkpoint(run, model, job.parent)
    apply_stage(model, STAGES[job.config.plan], job.config.lora, seed=run.seed)
    if run.train.gradient_checkpointing:
        # The reentrant form silently changes gradients where the inputs are frozen.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def start(job: StageJob, place: Place, steps: int) -> Any:
    """DeepSpeed's engine over the stage's model, with the schedule of ``steps`` optimizer steps."""
    model = TrainingModel(build_model(job).to(place.device))
    return start_engine(
        model,
        job.run.train,
        job.config,
        num_steps=steps,
        world_size=place.world_size,
        on_gpu=place.device.type == "cuda",
    )


def _train(job: StageJob, place: Place, monitor: Any) -> None:
    import ray.train

    config = job.config
    examples = load_examples(job.store, job.shards, "train", config.tasks)
    if not examples:
        raise InputDataError(
            f"no training examples of {', '.join(config.tasks)}",
            hint="read ledger.json of the shards artifact",
        )
    cursor = Cursor(job.run.seed, len(examples))
    steps = num_steps(len(examples), config.global_batch_size, config.epochs, config.max_steps)
    engine = start(job, place, steps)
    metrics: list[dict[str, Any]] = []
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            cursor, metrics = load_progress(engine, Path(folder))
    while engine.global_steps < steps:
        indices, cursor = cursor.take(config.global_batch_size)
        metrics.append(take_step(job, place, engine, examples, indices))
        step = engine.global_steps
        if place.rank == 0:
            monitor.update.remote(step, steps)
        if step % config.checkpoint_every_steps == 0 and step < steps:
            _checkpoint(engine, place, cursor, metrics)
    if place.rank == 0:
        _finish(job, place, engine, metrics)


def take_step(
    job: StageJob, place: Place, engine: Any, examples: list[Example], indices: NDArray[np.int64]
) -> dict[str, Any]:
    """Take one global batch; its row of metrics."""
    began = time.monotonic()
    step = engine.global_steps
    # Dropout depends on seed, step and rank alone: no generator state needs to be kept for going on.
    torch.manual_seed(int(np.random.SeedSequence((job.run.seed, step, place.rank)).generate_state(1)[0]))
    chosen = [examples[index] for index in indices]
    totals = StepTotals(sum(one.num_targets for one in chosen), sum(len(one.input_ids) for one in chosen))
    learning_rate = engine.get_lr()[0]
    batches = _local_batches(job, place, engine, examples, indices)
    result = train_step(
        engine, batches, totals, gamma=job.run.train.balance_weight, world_size=place.world_size
    )
    rate = totals.num_tokens / (time.monotonic() - began)
    return metrics_row(step + 1, result, learning_rate=learning_rate, tokens_per_s=rate)


def _local_batches(
    job: StageJob, place: Place, engine: Any, examples: list[Example], indices: NDArray[np.int64]
) -> list[dict[str, Tensor]]:
    """This rank's packed micro-batches of the global batch ``indices``."""
    row_length = job.run.train.pack_length_tokens
    core = engine.module.core
    parts = micro_batches(
        indices, rank=place.rank, world_size=place.world_size, accumulation=job.config.accumulation
    )
    batches = []
    for part in parts:
        chosen = [examples[index] for index in part]
        batch = (
            pack(chosen, row_length, core.config.image_token_id)
            if chosen
            else blank(examples[0], row_length, core.config.image_token_id)
        )
        batches.append(to_tensors(batch, place.device, core.dtype))
    return batches


def _checkpoint(engine: Any, place: Place, cursor: Cursor, metrics: list[dict[str, Any]]) -> None:
    """Save where training stands; the upload goes on beside the next steps."""
    import ray.train

    folder = Path(tempfile.mkdtemp(prefix="echoray-checkpoint-"))
    save_progress(engine, folder, cursor, metrics, rank=place.rank, world_size=place.world_size)
    ray.train.report(
        {"step": engine.global_steps},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def _finish(job: StageJob, place: Place, engine: Any, metrics: list[dict[str, Any]]) -> None:
    """Upload the artifact's files; the driver writes its manifest, last."""
    summary = {
        "stage": job.stage,
        "plan": job.config.plan,
        "steps": engine.global_steps,
        "loss": metrics[-1]["loss"],
        "trained_parameters": sum(one.numel() for one in engine.module.parameters() if one.requires_grad),
        "num_workers": place.world_size,
    }
    folder = Path(tempfile.mkdtemp(prefix="echoray-stage-"))
    try:
        save_final(engine.module.core, folder, summary, metrics)
        # What another run of the configuration finished meanwhile stays: last bits of weights may differ.
        if artifacts.find(job.store, job.target) is None:
            artifacts.upload_folder(job.store, folder, job.target.path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
