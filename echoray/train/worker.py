"""What each Ray Train worker runs: build the model, shard it with DeepSpeed, step through the cursor."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echoray.config import RunConfig, StageConfig
from echoray.data.batch import Example, blank, load_examples, pack
from echoray.data.cursor import Cursor, micro_batches, num_steps
from echoray.errors import InputDataError
from echoray.model.base import resolve_base
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import STAGES, apply_stage
from echoray.model.upcycle import upcycle
from echoray.train.checkpoint import (
    apply_checkpoint,
    checkpoint_folder,
    discard,
    load_progress,
    save_final,
    save_progress,
    store_of,
)
from echoray.train.loop import StepTotals, TrainingModel, to_tensors, train_step
from echoray.train.telemetry import metrics_row
from echoray.train.zero import deepspeed_config
from echoray.types import ArtifactRef


@dataclass(frozen=True)
class StageJob:
    """What a worker needs to know; plain data, so that it travels to any node."""

    run: RunConfig
    stage: str
    shards: ArtifactRef
    parent: ArtifactRef | None

    @property
    def config(self) -> StageConfig:
        """The stage's own settings."""
        return self.run.train.align if self.stage == "align" else self.run.train.finetune


def run_worker(arguments: dict[str, Any]) -> None:
    """Ray Train's ``train_loop_per_worker``: train the stage of ``arguments["job"]`` to its end."""
    import ray.train

    job: StageJob = arguments["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(1)  # on few cores more threads than workers are slower
    torch.manual_seed(job.run.seed + rank)
    examples = load_examples(store_of(job.run), job.shards, "train", job.config.tasks)
    if not examples:
        raise InputDataError(
            f"no training examples for tasks {', '.join(job.config.tasks)}", hint="check the ledger of `data tokenize`"
        )
    cursor = Cursor(job.run.seed, len(examples))
    steps = num_steps(len(examples), job.config.global_batch_size, job.config.epochs, job.config.max_steps)
    engine = _engine(job, build_model(job), steps, world_size, device)
    _train(job, engine, examples, cursor, steps, rank, world_size, arguments["counter"])


def build_model(job: StageJob) -> EchoVLMForConditionalGeneration:
    """The model as the stage begins: upcycled, the parent's weights in place, only the stage's part trainable."""
    run = job.run
    model = upcycle(resolve_base(run.model.base), run.model, seed=run.seed)
    if job.parent is not None:
        apply_checkpoint(run, store_of(run), model, job.parent)
    apply_stage(model, STAGES[job.stage], job.config.lora, seed=run.seed)
    if run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _engine(
    job: StageJob, model: EchoVLMForConditionalGeneration, steps: int, world_size: int, device: torch.device
) -> Any:
    import deepspeed
    from transformers import get_cosine_schedule_with_warmup

    train, stage = job.run.train, job.config
    warmup = int(np.ceil(stage.warmup_ratio * steps))
    engine, *_ = deepspeed.initialize(
        model=TrainingModel(model),
        model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
        config=deepspeed_config(train, stage, world_size=world_size, on_gpu=device.type == "cuda"),
        # DeepSpeed's own WarmupCosineLR spends two updates at a learning rate of zero.
        lr_scheduler=lambda optimizer: get_cosine_schedule_with_warmup(optimizer, warmup, steps),
    )
    return engine


def _train(
    job: StageJob,
    engine: Any,
    examples: list[Example],
    cursor: Cursor,
    steps: int,
    rank: int,
    world_size: int,
    counter: Any,
) -> None:
    import ray.train

    metrics: list[dict[str, Any]] = []
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            cursor, metrics = load_progress(engine, Path(folder))
    while engine.global_steps < steps:
        began = time.monotonic()
        indices, cursor = cursor.take(job.config.global_batch_size)
        chosen = [examples[index] for index in indices]
        totals = StepTotals(sum(one.num_targets for one in chosen), sum(len(one.input_ids) for one in chosen))
        batches = _local_batches(job, engine, examples, indices, rank, world_size)
        result = train_step(
            engine, batches, totals, gamma=job.run.train.balance_weight, world_size=world_size
        )
        step = engine.global_steps
        if rank == 0:
            rate = totals.num_tokens / (time.monotonic() - began)
            lr = engine.get_lr()[0]
            metrics.append(
                metrics_row(step, result.loss, result.balance_loss, lr, rate, result.expert_load_LE)
            )
            counter.update.remote(step, steps)
        if step % job.config.checkpoint_every_steps == 0 and step < steps:
            _report(lambda folder: save_progress(engine, folder, cursor, metrics, rank), step)
    _report(lambda folder: save_final(engine.module.core, folder, metrics) if rank == 0 else None, steps)


def _local_batches(
    job: StageJob,
    engine: Any,
    examples: list[Example],
    indices: np.ndarray[Any, np.dtype[np.int64]],
    rank: int,
    world_size: int,
) -> list[dict[str, Tensor]]:
    row_length = job.run.train.pack_length_tokens
    image_token = engine.module.core.config.image_token_id
    dtype = next(engine.module.parameters()).dtype
    batches = []
    parts = micro_batches(indices, rank=rank, world_size=world_size, accumulation=job.config.accumulation)
    for part in parts:
        chosen = [examples[index] for index in part]
        batch = (
            pack(chosen, row_length, image_token) if chosen else blank(examples[0], row_length, image_token)
        )
        batches.append(to_tensors(batch, engine.device, dtype))
    return batches


def _report(write: Any, step: int) -> None:
    import ray.train

    folder = checkpoint_folder()
    try:
        write(folder)
        empty = not any(folder.iterdir())
        ray.train.report(
            {"step": step}, checkpoint=None if empty else ray.train.Checkpoint.from_directory(str(folder))
        )
    finally:
        discard(folder)
