"""What a model directory holds: its layout, its configuration, and whether its weights fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echoray.config import ModelConfig
from echoray.errors import EchoRayError, ModelLoadError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.layout import Layout, plan_in_memory
from echoray.model.modeling import EchoVLMForConditionalGeneration, empty_model, refuse_faults
from echoray.model.released import released_config
from echoray.model.upcycle import echovlm_config
from echoray.model.weights import Planned, Weights

HINT = "name the directory of a Qwen2-VL, an exported EchoVLM or a released EchoVLM"
_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class ModelDirectory:
    """A directory's layout and configuration, and the model on torch's meta device."""

    layout: Layout
    config: EchoVLMConfig
    model: EchoVLMForConditionalGeneration


def read_directory(folder: Path) -> ModelDirectory:
    """Read config.json; a dense Qwen2-VL becomes an EchoVLM without experts.

    Raises ModelLoadError where the directory holds adapters or no model that is known.
    """
    layout = _layout(folder)
    try:
        config = _config(folder, layout)
        return ModelDirectory(layout, config, empty_model(config))
    except EchoRayError:
        raise
    except Exception as error:  # whatever transformers and torch make of a file that is not theirs
        raise ModelLoadError(f"{folder}: config.json describes no model ({error})", hint=HINT) from error


def fitting_plan(weights: Weights, model: EchoVLMForConditionalGeneration) -> dict[str, Planned]:
    """The model's tensors, by name in memory, made of those in the files.

    Raises ModelLoadError naming the weights that are missing, not known or of another shape. A head that is
    written out although tied is left out when it equals the embeddings, and else refused.
    """
    plan = plan_in_memory(weights.tensors, hint=HINT)
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}  # without a tied head
    if _HEAD not in shapes and _HEAD in plan and _EMBEDDING in plan:
        head, embedding = (weights.tensor(plan[name]) for name in (_HEAD, _EMBEDDING))
        if head.dtype == embedding.dtype and torch.equal(head, embedding):
            del plan[_HEAD]
    refuse_faults(
        weights.folder,
        hint=HINT,
        missing=shapes.keys() - plan.keys(),
        unknown=plan.keys() - shapes.keys(),
        misshapen={name for name in shapes.keys() & plan.keys() if plan[name].info.shape != shapes[name]},
    )
    return plan


def _config(folder: Path, layout: Layout) -> EchoVLMConfig:
    if layout == "released":
        return released_config(folder)
    if layout == "qwen2_vl":
        return echovlm_config(folder, ModelConfig(num_experts=0))
    config: EchoVLMConfig = EchoVLMConfig.from_pretrained(folder)
    return config


def _layout(folder: Path) -> Layout:
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: not a directory", hint=HINT)
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"{folder}: holds adapters, not a model", hint="merge them first: `echoray model export` does"
        )
    try:
        values: dict[str, Any] = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{folder}: no readable config.json ({error!r})", hint=HINT) from None
    kind = values.get("model_type")
    if kind == EchoVLMConfig.model_type:
        return "echovlm"
    if kind == "qwen2_vl":
        return "released" if values.get("num_experts") else "qwen2_vl"
    raise ModelLoadError(f"{folder}: model_type {kind!r} is not known", hint=HINT)
