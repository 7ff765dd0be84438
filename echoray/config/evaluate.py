"""Held-out evaluation with greedy decoding (She et al., EchoVLM, section 4.1)."""

from __future__ import annotations

from pydantic import Field

from echoray.config.base import Section
from echoray.types import Task


class EvaluateConfig(Section):
    """What is generated and how much of it."""

    tasks: tuple[Task, ...] = ("report",)
    max_new_tokens: int = Field(512, ge=1)
    batch_size: int = Field(16, ge=1)
    max_examples: int | None = Field(None, ge=1, description="per model; none given: the whole test split")
    bootstrap_samples: int = Field(1000, ge=0, description="resamples for the 95% intervals")
    num_pictures: int = Field(7, ge=0, description="case pictures saved with the report")
