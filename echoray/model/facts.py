"""Facts about a model directory, from its headers and its bytes; the model itself is never in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from echoray.config import LoraConfig
from echoray.model.directory import HINT, fitting_plan, read_directory
from echoray.model.layout import Layout
from echoray.model.modeling import EchoVLMForConditionalGeneration, moe_layer_indices
from echoray.model.trainable import STAGES, apply_stage, parameter_counts
from echoray.model.weights import Planned, Weights, open_weights
from echoray.types import Progress

PARTS = ("vision", "projector", "language", "experts")


@dataclass(frozen=True)
class ModelFacts:
    """What ``inspect_model`` found; a dense model has no mix, no experts and no stages."""

    layout: Layout
    parameters: Mapping[str, int]  # by part, and "total"; a tied head counts once
    trainable: Mapping[str, int]  # by stage
    dtypes: tuple[str, ...]
    mix: str | None
    experts: int
    experts_per_token: int
    expert_layers: tuple[int, ...]
    layers: int
    digest: str


def inspect_model(
    folder: Path, *, progress: Progress = lambda step, done, total: None, lora: LoraConfig | None = None
) -> ModelFacts:
    """Read a Qwen2-VL, an exported EchoVLM or a released EchoVLM directory.

    ``lora`` is what the finetune stage adds (default: LoraConfig's defaults). Raises ModelLoadError where
    the directory holds no such model or its weights do not fit its configuration.
    """
    read = read_directory(folder)
    text = read.config.text_config
    dense = not moe_layer_indices(text)
    counts = parameter_counts(read.model)
    parts = {part: counts[part] for part in PARTS}
    with open_weights(folder, hint=HINT) as weights:
        plan = fitting_plan(weights, read.model)
        return ModelFacts(
            layout=read.layout,
            parameters=parts | {"total": sum(parts.values())},
            trainable={} if dense else _trainable(read.model, lora or LoraConfig()),
            dtypes=tuple(sorted({_name(planned.info.dtype) for planned in plan.values()})),
            mix=None if dense else text.mix,
            experts=0 if dense else text.num_experts,
            experts_per_token=0 if dense else text.num_experts_per_tok,
            expert_layers=moe_layer_indices(text),
            layers=text.num_hidden_layers,
            digest=content_digest(weights, plan, progress),
        )


def content_digest(weights: Weights, plan: Mapping[str, Planned], progress: Progress) -> str:
    """SHA-256 over each tensor's name in memory, dtype, shape and bytes, in the order of the names.

    The layout and the division into files do not matter: a conversion keeps the digest.
    """
    digest = hashlib.sha256()
    for done, name in enumerate(sorted(plan), start=1):
        info = plan[name].info
        digest.update(f"{name} {_name(info.dtype)} {list(info.shape)}\n".encode())
        for piece in plan[name].pieces:
            digest.update(weights.content(piece))
        progress("tensors digested", done, len(plan))
    return digest.hexdigest()


def _trainable(model: EchoVLMForConditionalGeneration, lora: LoraConfig) -> dict[str, int]:
    """How many parameters each stage trains; ``model`` has the last stage's adapters after that."""
    counts = {}
    for name, stage in STAGES.items():
        apply_stage(model, stage, lora, seed=0)
        counts[name] = parameter_counts(model)["trainable"]
    return counts


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
