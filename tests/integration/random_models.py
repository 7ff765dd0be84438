"""Small random EchoVLM directories with the embedded base's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from echoray.model import EchoVLMConfig, EchoVLMForConditionalGeneration
from echoray.model.base import WEIGHTS
from echoray.model.export import export_model

IMAGE_PX = 56


def random_model(mix: str, **changes: Any) -> EchoVLMForConditionalGeneration:
    """A small EchoVLM whose random weights make every part matter: outputs vary from token to token."""
    base = json.loads((WEIGHTS / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    text = {
        "vocab_size": base["text_config"]["vocab_size"],
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": rope,
        "mix": mix,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 96,
        **changes,
    }
    vision = {"depth": 2, "embed_dim": 128, "hidden_size": 128, "num_heads": 4, "mlp_ratio": 2}
    tokens = {key: value for key, value in base.items() if key.endswith("token_id")}
    config = EchoVLMConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
    model = EchoVLMForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[-1] ** -0.5)
            elif name.endswith(("alpha_logit", "lambda_logit", ".bias")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def export(model: EchoVLMForConditionalGeneration, folder: Path) -> Path:
    """Write ``model`` as an exported directory."""
    metadata = {
        "name": "random",
        "version": "f00dcafe",
        "image_size_px": IMAGE_PX,
        "image_layout": "dynamic",
        "system_prompt": {"en": "You write drafts.", "zh": "草稿。"},
        "lineage": {},
        "training": [],
    }
    export_model(model, WEIGHTS, folder, metadata=metadata)
    return folder
