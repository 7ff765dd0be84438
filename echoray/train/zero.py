"""DeepSpeed for a stage: one ZeRO-2 configuration for GPUs (NCCL) and CPUs (gloo), and the engine."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import torch

from echoray.config import StageConfig, TrainConfig
from echoray.train.loop import TrainingModel


def deepspeed_config(
    train: TrainConfig, stage: StageConfig, *, world_size: int, on_gpu: bool
) -> dict[str, Any]:
    """Table 9's recipe for DeepSpeed; the learning-rate schedule is passed beside it.

    The batch sizes here only tell DeepSpeed the accumulation: what a step holds is the cursor's business.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": stage.accumulation,
        "train_batch_size": stage.accumulation * world_size,
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_scatter": on_gpu,
        },
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": stage.learning_rate,
                "weight_decay": train.weight_decay,
                "betas": [0.9, 0.999],
                # DeepSpeed's own kernels compile for a minute on first use and need a compiler on every node.
                "torch_adam": True,
            },
        },
        "bf16": {"enabled": train.precision == "bf16"},
        "gradient_clipping": train.gradient_clip,
        "steps_per_print": 1 << 30,
    }


def start_engine(
    model: TrainingModel,
    train: TrainConfig,
    stage: StageConfig,
    *,
    num_steps: int,
    world_size: int,
    on_gpu: bool,
) -> Any:
    """DeepSpeed's engine over the trainable parameters of ``model``, with linear warm-up and cosine decay."""
    # DeepSpeed imports torch's compiler for an optimizer that is not used; without it a start is 2 s shorter.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from torch.optim.lr_scheduler import LambdaLR

    # Its shared-memory all-reduce spins on busy cores and compiles on first use; gloo does neither.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warmup_steps = math.ceil(stage.warmup_ratio * num_steps)
    share = partial(rate_share, warmup_steps=warmup_steps, num_steps=num_steps)
    parameters: list[torch.nn.Parameter] = [one for one in model.parameters() if one.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameters,
        config=deepspeed_config(train, stage, world_size=world_size, on_gpu=on_gpu),
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, share),
    )
    return engine


def rate_share(step: int, *, warmup_steps: int, num_steps: int) -> float:
    """The share of the peak learning rate for the update that follows ``step`` finished ones.

    Linear warm-up to the peak, then a cosine that would reach 0 after the last update. The schedules of
    transformers and DeepSpeed begin at 0 and waste the first updates.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress))
