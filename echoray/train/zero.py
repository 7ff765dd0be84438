"""The DeepSpeed configuration of a stage: ZeRO-2, the same on GPUs (NCCL) and CPUs (gloo)."""

from __future__ import annotations

from typing import Any

from echoray.config import StageConfig, TrainConfig


def deepspeed_config(train: TrainConfig, stage: StageConfig, *, world_size: int, on_gpu: bool) -> dict[str, Any]:
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
                # DeepSpeed's own CPU kernel compiles for a minute on first use; torch's needs nothing.
                "torch_adam": not on_gpu,
            },
        },
        "bf16": {"enabled": train.precision == "bf16"},
        "gradient_clipping": train.gradient_clip,
        "steps_per_print": 1 << 30,
    }
