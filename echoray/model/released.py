"""The publicly released EchoVLM checkpoint's layout: its flat configuration, both ways, and its loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from echoray.errors import ModelLoadError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.layout import RELEASED_ARCHITECTURE, plan_in_memory
from echoray.model.modeling import EchoVLMForConditionalGeneration, load_strictly, moe_layer_indices
from echoray.model.weights import open_weights

_HINT = "name a complete checkpoint in the released EchoVLM layout"
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# Keys of our language model that the flat form writes otherwise, or that follow from others.
_OURS_ALONE = (
    "mix", "moe_layers", "initial_alpha", "aux_loss_form", "model_type", "layer_types", "architectures",
    "dtype",
)  # fmt: skip


def load_released(folder: Path, *, dtype: torch.dtype = torch.float32) -> EchoVLMForConditionalGeneration:
    """Load a checkpoint in the released layout.

    Raises ModelLoadError naming the weights that are missing, not known or of another shape.
    """
    config = released_config(folder)
    with open_weights(folder, hint=_HINT) as weights:
        plan = plan_in_memory(weights.tensors, hint=_HINT)
        state = {name: weights.tensor(planned) for name, planned in plan.items()}
        return load_strictly(folder, hint=_HINT, state=state, config=config, dtype=dtype)


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


def flat_config(config: EchoVLMConfig) -> dict[str, Any]:
    """The flat form of a configuration, the inverse of ``released_config``.

    Lost are the settings of training that the released layout does not know: the form of the balancing loss.
    Raises ModelLoadError for a model that the layout cannot hold.
    """
    _check_can_be_released(config)
    whole: dict[str, Any] = config.to_dict()
    text: dict[str, Any] = {k: v for k, v in whole.pop("text_config").items() if k not in _OURS_ALONE}
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    # The released code knows Qwen2-VL's plain M-RoPE by this older name.
    kind = rope.pop("rope_type", "default")
    text["rope_scaling"] = rope | {"type": "mrope" if kind == "default" else kind}
    dtype = whole.pop("dtype", None)
    named = {"model_type": "qwen2_vl", "architectures": [RELEASED_ARCHITECTURE], "torch_dtype": dtype}
    return text | whole | named


def _check_can_be_released(config: EchoVLMConfig) -> None:
    text = config.text_config
    faults = {
        f"mix {text.mix!r}, where the released layout has only 'token'": text.mix != "token",
        "no experts": not text.num_experts,
        "layers without experts": len(moe_layer_indices(text)) != text.num_hidden_layers,
        "no shared expert": not text.shared_expert_intermediate_size,
    }
    found = [fault for fault, there in faults.items() if there]
    if found:
        raise ModelLoadError(
            f"the released layout cannot hold this model: {'; '.join(found)}",
            hint="only mix: token with experts in every layer and a shared expert can be written so",
        )
