"""Configuration of EchoVLM: Qwen2-VL and its dual-path experts (She et al., EchoVLM, section 3.3)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig

from echoray.errors import ConfigError

Mix = Literal["scalar", "token"]
AuxLossForm = Literal["paper", "switch"]


class EchoVLMTextConfig(Qwen2VLTextConfig):
    """Qwen2-VL's language model with experts; ``num_experts=0`` is the dense model.

    Raises ConfigError for a value that no layer could be built from.
    """

    model_type = "echovlm_text"

    mix: Mix = "scalar"  # "scalar": eq. 3; "token": the released checkpoint
    num_experts: int = 4
    num_experts_per_tok: int = 2
    norm_topk_prob: bool = False  # only for mix="token"; eq. 4 always normalises over the selected
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632  # 0 (null in JSON): no shared expert
    moe_layers: list[int] | tuple[int, ...] | None = None  # decoder layers with experts; None: all
    initial_alpha: float = 0.9  # share of the frozen FFN before training (mix="scalar")
    router_aux_loss_coef: float = 0.001  # gamma of eq. 9
    aux_loss_form: AuxLossForm = "paper"  # "paper": eq. 8; "switch": times E, pooled over layers
    output_router_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.shared_expert_intermediate_size = self.shared_expert_intermediate_size or 0
        _one_of("mix", self.mix, get_args(Mix))
        _one_of("aux_loss_form", self.aux_loss_form, get_args(AuxLossForm))
        _within("num_experts", self.num_experts, 0, None)
        if self.num_experts:
            _within("num_experts_per_tok", self.num_experts_per_tok, 1, self.num_experts)
        for index in self.moe_layers or ():
            _within("moe_layers", index, 0, self.num_hidden_layers - 1)


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

    text_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            flat = {key: kwargs.pop(key) for key in MOE_KEYS if key in kwargs}
            self.text_config = {**flat, **self.text_config}
        super().__post_init__(**kwargs)


def _one_of(key: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key} is {value!r}, expected {' or '.join(known)}", hint=f"correct {key}")


def _within(key: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{key} is {value}, expected {expected}", hint=f"correct {key}")
