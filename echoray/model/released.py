"""Read the publicly released EchoVLM checkpoint's layout (flat configuration, one tensor per expert).

Shape legend: E experts, I expert width, H hidden size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from echoray.errors import ModelLoadError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.modeling import EchoVLMForConditionalGeneration, load_strictly

_HINT = "name a complete checkpoint in the released EchoVLM layout"
_RENAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model|visual)"), "model.language_model."),
    (re.compile(r"\.coefficient\."), ".mlp.mix.coefficient."),
    (re.compile(r"\.moe\.gate\."), ".mlp.router."),
    (re.compile(r"\.moe\.shared_expert_gate\."), ".mlp.mix.shared_gate."),
    (re.compile(r"\.moe\."), ".mlp."),
)
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def load_released(folder: Path, *, dtype: torch.dtype = torch.float32) -> EchoVLMForConditionalGeneration:
    """Load a checkpoint in the released layout.

    Raises ModelLoadError naming the weights that are missing, not known or of another shape.
    """
    config = released_config(folder)
    try:
        state = {_rename(key): tensor for key, tensor in _tensors(folder)}
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{folder}: cannot be read ({error})", hint=_HINT) from None
    return load_strictly(folder, hint=_HINT, state=stack_experts(state), config=config, dtype=dtype)


def released_config(folder: Path) -> EchoVLMConfig:
    """The EchoVLM configuration of a flat, released config.json (mix="token", balancing loss times E)."""
    try:
        flat: dict[str, Any] = json.loads((folder / "config.json").read_text())
        vision: dict[str, Any] = flat.pop("vision_config")
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{folder}: no readable config.json ({error!r})", hint=_HINT) from None
    known = EchoVLMConfig.sub_configs["text_config"]().to_dict().keys() | {"rope_scaling", "rope_theta"}
    text = {key: value for key, value in flat.items() if key in known and key != "model_type"}
    text |= {"mix": "token", "aux_loss_form": "switch", "output_router_logits": False}
    return EchoVLMConfig(
        text_config=text,
        vision_config={key: value for key, value in vision.items() if key != "model_type"},
        tie_word_embeddings=flat.get("tie_word_embeddings", False),
        **{key: flat[key] for key in _TOKEN_IDS if key in flat},
    )


def stack_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack each layer's ``experts.i.*`` into ``gate_up_proj`` (E, 2I, H) and ``down_proj`` (E, H, I).

    Raises ModelLoadError where an expert lacks a projection.
    """
    stacked: dict[str, Tensor] = {}
    layers: dict[str, dict[tuple[int, str], Tensor]] = {}
    for key, tensor in state.items():
        if match := _EXPERT.fullmatch(key):
            layers.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        else:
            stacked[key] = tensor
    for prefix, experts in layers.items():
        indices = range(max(index for index, _ in experts) + 1)
        lacking = [f"{i}.{name}" for i in indices for name in _PROJECTIONS if (i, name) not in experts]
        if lacking:
            raise ModelLoadError(f"{prefix}: missing {', '.join(lacking[:5])}", hint=_HINT)
        gate_up = [torch.cat([experts[i, "gate_proj"], experts[i, "up_proj"]]) for i in indices]
        stacked[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        stacked[f"{prefix}.down_proj"] = torch.stack([experts[i, "down_proj"] for i in indices])
    return stacked


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelLoadError(f"{folder}: no model*.safetensors", hint="pickled checkpoints are not read")
    for file in files:
        with safe_open(file, framework="pt") as reader:
            for key in reader.keys():  # noqa: SIM118  (not a mapping)
                yield key, reader.get_tensor(key)
