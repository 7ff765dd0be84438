"""The EchoVLM architecture: She et al., EchoVLM, section 3.3 and Table 9."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from echoray.config.base import Section

EMBEDDED_BASE = "embedded"


class ModelConfig(Section):
    """Which Qwen2-VL is upcycled, and the dual-path Mixture-of-Experts that is added to it."""

    base: str = Field(EMBEDDED_BASE, description="'embedded' (the tiny base) or a Qwen2-VL directory")
    mix: Literal["scalar", "token"] = Field(
        "scalar", description="scalar: paper eq. 3; token: released checkpoint"
    )
    num_experts: int = Field(4, ge=0, description="routed experts per layer; 0 keeps the model dense")
    num_experts_per_tok: int = Field(2, ge=1)
    moe_intermediate_size: int = Field(1408, ge=8, multiple_of=8)
    shared_expert_intermediate_size: int = Field(5632, ge=0, multiple_of=8, description="0: no shared expert")
    moe_layers: tuple[int, ...] | None = Field(
        None, description="decoder layers with experts; none given: all"
    )
    initial_alpha: float = Field(
        0.9, gt=0, lt=1, description="share of the frozen FFN before training (scalar)"
    )
    expert_init: Literal["random", "slices"] = Field("random", description="slices: copies of FFN slices")
    aux_loss_form: Literal["paper", "switch"] = Field("paper", description="eq. 8, or times the expert count")
    experts_implementation: Literal["auto", "eager", "batched_mm", "grouped_mm"] = Field(
        "auto", description="how experts are computed; auto: chosen by size and device"
    )

    @model_validator(mode="after")
    def _top_k_fits(self) -> ModelConfig:
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, "
                f"expected at most num_experts ({self.num_experts})"
            )
        return self
