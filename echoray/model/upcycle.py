"""Turn any Qwen2-VL directory into an EchoVLM: the original FFN beside new experts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echoray.config import ModelConfig
from echoray.errors import ModelLoadError
from echoray.model.configuration import MOE_KEYS, EchoVLMConfig
from echoray.model.dual_path import DualPathMLP, ScalarMix, TokenMix
from echoray.model.modeling import EchoVLMForConditionalGeneration, load_strictly

_HINT = "name a Qwen2-VL directory with model.base"
_REPLACED = {"model_type", "architectures", "transformers_version", "text_config"}
MOE_PARTS = (".mlp.router.", ".mlp.experts.", ".mlp.shared_expert.", ".mlp.mix.")


def upcycle(
    base: Path, config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32
) -> EchoVLMForConditionalGeneration:
    """Load Qwen2-VL (old or new key layout, one file or sharded) and add the experts of ``config``.

    The new weights depend on ``seed`` alone. Raises ModelLoadError where the directory is no Qwen2-VL, or a
    weight that is not the MoE's is missing, not known or of another shape.
    """
    model = load_strictly(
        base,
        hint=_HINT,
        may_lack=is_moe,
        config=echovlm_config(base, config),
        dtype=dtype,
        experts_implementation=config.experts_implementation,
    )
    initialise_moe(model, config.expert_init, seed)
    return model


def echovlm_config(base: Path, config: ModelConfig) -> EchoVLMConfig:
    """The EchoVLM configuration that ``config`` makes of the Qwen2-VL in ``base``."""
    from transformers import Qwen2VLConfig

    try:
        found = json.loads((base / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{base}: no readable config.json ({error!r})", hint=_HINT) from None
    if found != Qwen2VLConfig.model_type:
        raise ModelLoadError(
            f"{base}: model_type {found!r}, expected {Qwen2VLConfig.model_type!r}", hint=_HINT
        )
    values: dict[str, Any] = Qwen2VLConfig.from_pretrained(base).to_dict()
    text = {key: value for key, value in values["text_config"].items() if key != "model_type"}
    kept = {key: value for key, value in values.items() if key not in _REPLACED}
    return EchoVLMConfig(**kept, text_config=text | config.model_dump(include=set(MOE_KEYS)))


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
