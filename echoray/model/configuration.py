"""Configuration of EchoVLM: Qwen2-VL plus the dual-path Mixture-of-Experts (She et al., EchoVLM, section 3.3)."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig


class EchoVLMTextConfig(Qwen2VLTextConfig):
    """Qwen2-VL's language model with experts; ``num_experts=0`` is the dense model."""

    model_type = "echovlm_text"

    mix: str = "scalar"  # "scalar": eq. 3; "token": the released checkpoint
    num_experts: int = 4
    num_experts_per_tok: int = 2
    norm_topk_prob: bool = False  # only for mix="token"; eq. 4 always normalises over the selected
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632  # 0: no shared expert
    moe_layers: list[int] | tuple[int, ...] | None = None  # decoder layers with experts; None: all
    initial_alpha: float = 0.9  # share of the frozen FFN before training (mix="scalar")
    router_aux_loss_coef: float = 0.001  # gamma of eq. 9
    aux_loss_form: str = "paper"  # "paper": eq. 8; "switch": times E, pooled over layers
    output_router_logits: bool = False


# Flat configurations of the released checkpoint keep these beside the language model's own keys.
MOE_KEYS = (
    "mix", "num_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size",
    "shared_expert_intermediate_size", "moe_layers", "initial_alpha", "router_aux_loss_coef", "aux_loss_form",
    "output_router_logits",
)  # fmt: skip


class EchoVLMConfig(Qwen2VLConfig):
    """The whole model; MoE keys at the top level (flat layout) are moved into ``text_config``."""

    model_type = "echovlm"
    sub_configs = {"vision_config": Qwen2VLVisionConfig, "text_config": EchoVLMTextConfig}  # noqa: RUF012

    def __post_init__(self, **kwargs: Any) -> None:
        flat = {key: kwargs.pop(key) for key in MOE_KEYS if key in kwargs}
        if flat and isinstance(self.text_config, dict):
            self.text_config = {**flat, **self.text_config}
            flat = {}
        super().__post_init__(**flat, **kwargs)
