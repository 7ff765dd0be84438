"""Read the publicly released EchoVLM checkpoint's layout (flat configuration, one tensor per expert)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echoray.errors import ModelLoadError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.modeling import EchoVLMForConditionalGeneration

_RENAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model|visual)"), "model.language_model."),
    (re.compile(r"\.coefficient\."), ".mlp.mix.coefficient."),
    (re.compile(r"\.moe\.gate\."), ".mlp.router."),
    (re.compile(r"\.moe\.shared_expert_gate\."), ".mlp.mix.shared_gate."),
    (re.compile(r"\.moe\."), ".mlp."),
)
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def load_released(folder: Path, *, dtype: torch.dtype = torch.float32) -> EchoVLMForConditionalGeneration:
    """Load a checkpoint in the released layout.

    Raises ModelLoadError naming the keys that are missing or not known.
    """
    config = released_config(folder)
    with torch.device("meta"):
        model = EchoVLMForConditionalGeneration(config)
    state = stack_experts({_rename(key): tensor.to(dtype) for key, tensor in _tensors(folder)})
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.language_model.embed_tokens.weight"])
    missing = sorted(model.state_dict().keys() - state.keys())
    unknown = sorted(state.keys() - model.state_dict().keys())
    if missing or unknown:
        raise ModelLoadError(
            f"{folder}: missing {missing[:5]}, not known {unknown[:5]}",
            hint="name a complete checkpoint in the released EchoVLM layout",
        )
    fresh = EchoVLMForConditionalGeneration(config).to(dtype)  # buffers (rotary frequencies) are not in the file
    fresh.load_state_dict(state)
    return fresh.eval()


def released_config(folder: Path) -> EchoVLMConfig:
    """The EchoVLM configuration of a flat, released config.json (mix="token", balancing loss times E)."""
    try:
        flat: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder}: no readable config.json ({error})", hint="name the folder") from None
    vision = flat.pop("vision_config")
    known = EchoVLMConfig.sub_configs["text_config"]().to_dict().keys() | {"rope_scaling", "rope_theta"}
    text = {key: value for key, value in flat.items() if key in known and key != "model_type"}
    text |= {"mix": "token", "aux_loss_form": "switch", "output_router_logits": False}
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return EchoVLMConfig(
        text_config=text,
        vision_config={key: value for key, value in vision.items() if key != "model_type"},
        tie_word_embeddings=flat.get("tie_word_embeddings", False),
        **{key: flat[key] for key in tokens if key in flat},
    )


def stack_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace ``experts.i.{gate,up,down}_proj`` by the stacked ``gate_up_proj`` (E, 2I, H) and ``down_proj`` (E, H, I)."""
    stacked = {key: tensor for key, tensor in state.items() if not _EXPERT.match(key)}
    parts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for key, tensor in state.items():
        if match := _EXPERT.match(key):
            parts.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
    for prefix, experts in parts.items():
        indices = sorted({index for index, _ in experts})
        gate_up = [torch.cat([experts[i, "gate_proj"], experts[i, "up_proj"]]) for i in indices]
        stacked[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        stacked[f"{prefix}.down_proj"] = torch.stack([experts[i, "down_proj"] for i in indices])
    return stacked


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(f"{folder}: no .safetensors file", hint="pickled checkpoints are not read")
    for file in files:
        with safe_open(file, framework="pt") as reader:
            for key in reader.keys():  # noqa: SIM118  (not a mapping)
                yield key, reader.get_tensor(key)
