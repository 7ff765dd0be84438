"""Two-stage training: She et al., EchoVLM, section 3.4 and Table 9."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from echoray.config.base import Section
from echoray.types import TASKS, Task


class LoraConfig(Section):
    """Low-rank adaptation of the base model in stage 2 (Table 9)."""

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)


class StageConfig(Section):
    """One training stage; what trains is named by ``plan``."""

    plan: Literal["align", "finetune"] = Field(
        description="align: MoE only; finetune: MoE and LoRA on the base"
    )
    tasks: tuple[Task, ...] = TASKS
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps")
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    global_batch_size: int = Field(8, ge=1, description="examples per optimizer step over all workers")
    accumulation: int = Field(1, ge=1, description="micro-batches per worker and optimizer step")
    lora: LoraConfig | None = None
    checkpoint_every_steps: int = Field(200, ge=1)


class TrainConfig(Section):
    """What both stages share."""

    align: StageConfig = StageConfig(plan="align", tasks=("report",), learning_rate=1e-3)
    finetune: StageConfig = StageConfig(plan="finetune", learning_rate=2e-5, lora=LoraConfig())
    num_workers: int = Field(8, ge=1, description="Table 9: 8 GPUs")
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    balance_weight: float = Field(0.001, ge=0, description="gamma of eq. 9")
    pack_length_tokens: int = Field(32768, ge=64, description="row length that examples are packed into")
    max_failures: int = Field(2, ge=0, description="worker failures survived by resuming from a checkpoint")
