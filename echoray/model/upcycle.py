"""Turn any Qwen2-VL directory into an EchoVLM: the original FFN frozen beside new experts."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echoray.config import ModelConfig
from echoray.errors import ModelLoadError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.dual_path import DualPathMLP, ScalarMix, TokenMix
from echoray.model.modeling import EchoVLMForConditionalGeneration

logger = logging.getLogger(__name__)

MOE_PARTS = (".mlp.router.", ".mlp.experts.", ".mlp.shared_expert.", ".mlp.mix.")


def upcycle(
    base: Path, config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32
) -> EchoVLMForConditionalGeneration:
    """Load Qwen2-VL (old or new key layout, one file or sharded) and add the experts of ``config``.

    The new weights depend on ``seed`` alone. Raises ModelLoadError where the directory is no Qwen2-VL, or a key
    that is not the MoE's is missing or has another shape.
    """
    echo_config = echovlm_config(base, config)
    model, info = EchoVLMForConditionalGeneration.from_pretrained(
        base, config=echo_config, dtype=dtype, output_loading_info=True, experts_implementation=config.experts_implementation
    )
    missing = sorted(key for key in info["missing_keys"] if not is_moe(key))
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        raise ModelLoadError(
            f"{base}: {len(missing)} weights missing, {len(mismatched)} of another shape: "
            f"{', '.join((missing + mismatched)[:5])}",
            hint="name a complete Qwen2-VL directory with model.base",
        )
    initialise_moe(model, config.expert_init, seed)
    return model


def echovlm_config(base: Path, config: ModelConfig) -> EchoVLMConfig:
    """The EchoVLM configuration that ``config`` makes of the Qwen2-VL in ``base``."""
    from transformers import AutoConfig

    try:
        qwen = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{base}: no readable config.json ({error})", hint="name a Qwen2-VL directory") from None
    if qwen.model_type != "qwen2_vl":
        raise ModelLoadError(f"{base}: model_type {qwen.model_type!r}, expected 'qwen2_vl'", hint="name a Qwen2-VL")
    values: dict[str, Any] = qwen.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        values.pop(key, None)
    text = {key: value for key, value in values["text_config"].items() if key != "model_type"}
    num_layers = text["num_hidden_layers"]
    outside = [index for index in config.moe_layers or () if not 0 <= index < num_layers]
    if outside:
        raise ModelLoadError(f"model.moe_layers {outside}: the base has {num_layers} layers", hint="count from 0")
    text |= {
        "mix": config.mix,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "shared_expert_intermediate_size": config.shared_expert_intermediate_size,
        "moe_layers": config.moe_layers,
        "initial_alpha": config.initial_alpha,
        "aux_loss_form": config.aux_loss_form,
    }
    return EchoVLMConfig(**{**values, "text_config": text})


def is_moe(key: str) -> bool:
    """Whether a state-dict key belongs to the experts, their router or the mix."""
    return any(part in key for part in MOE_PARTS)


@torch.no_grad()
def initialise_moe(model: EchoVLMForConditionalGeneration, expert_init: str, seed: int) -> None:
    """Set every MoE weight from ``seed``: small random experts, or slices of the layer's own FFN."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, DualPathMLP):
            _initialise_layer(module, expert_init, generator)


def _initialise_layer(block: DualPathMLP, expert_init: str, generator: torch.Generator) -> None:
    hidden = block.router.weight.shape[1]
    _normal(block.router.weight, hidden**-0.5, generator)
    shared = block.shared_expert
    if expert_init == "slices":
        for expert in range(block.experts.num_experts):
            _copy_slice(block, expert)
        if shared is not None:
            _copy_rows(shared.gate_proj.weight, block.gate_proj.weight, 0)
            _copy_rows(shared.up_proj.weight, block.up_proj.weight, 0)
            _copy_rows(shared.down_proj.weight.T, block.down_proj.weight.T, 0)
    else:
        # Inputs keep their scale; outputs start small, so that training begins near the base model.
        _normal(block.experts.gate_up_proj, hidden**-0.5, generator)
        _normal(block.experts.down_proj, 0.1 * block.experts.down_proj.shape[-1] ** -0.5, generator)
        if shared is not None:
            _normal(shared.gate_proj.weight, hidden**-0.5, generator)
            _normal(shared.up_proj.weight, hidden**-0.5, generator)
            _normal(shared.down_proj.weight, 0.1 * shared.down_proj.weight.shape[-1] ** -0.5, generator)
    _initialise_mix(block.mix, generator)


def _initialise_mix(mix: nn.Module, generator: torch.Generator) -> None:
    if isinstance(mix, ScalarMix):
        mix.alpha_logit.fill_(math.log(mix.initial_alpha / (1 - mix.initial_alpha)))
        mix.lambda_logit.zero_()
    elif isinstance(mix, TokenMix):
        _normal(mix.coefficient.weight, 0.02, generator)
        # MoE 0.1, FFN 0.9 before training, as in the scalar mix.
        mix.coefficient.bias.copy_(torch.tensor([math.log(0.1), math.log(0.9)]))
        _normal(mix.shared_gate.weight, 0.02, generator)


def _normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def _copy_slice(block: DualPathMLP, expert: int) -> None:
    width = block.experts.down_proj.shape[-1]
    start = expert * width
    gate, up = block.experts.gate_up_proj[expert].chunk(2)
    _copy_rows(gate, block.gate_proj.weight, start)
    _copy_rows(up, block.up_proj.weight, start)
    _copy_rows(block.experts.down_proj[expert].T, block.down_proj.weight.T, start)


def _copy_rows(target: Tensor, source: Tensor, start: int) -> None:
    rows = torch.arange(start, start + target.shape[0]) % source.shape[0]
    target.copy_(source[rows])
