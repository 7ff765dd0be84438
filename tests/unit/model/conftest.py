"""A small random Qwen2-VL and the EchoVLMs made of it; prompts with and without images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from echoray.config import ModelConfig
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.upcycle import upcycle

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[2] / "golden" / "released-layer-tiny"
IMAGE = 5
VOCABULARY = 96
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.15,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}
VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}

Build = Callable[..., EchoVLMForConditionalGeneration]


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL of two layers, saved by transformers."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen2-vl")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=dict(TEXT), vision_config=dict(VISION), **TOKENS)
        )
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_config() -> Callable[..., ModelConfig]:
    """Small experts; every field can be changed."""

    def make(**changes: Any) -> ModelConfig:
        small = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "initial_alpha": 0.5}
        return ModelConfig(**{**small, **changes})

    return make


@pytest.fixture(scope="session")
def build(qwen_dir: Path, model_config: Callable[..., ModelConfig]) -> Build:
    """Upcycle the random base with experts whose output is as large as the FFN's."""

    def make(seed: int = 1, **changes: Any) -> EchoVLMForConditionalGeneration:
        model = upcycle(qwen_dir, model_config(**changes), seed=seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("experts.down_proj", "shared_expert.down_proj.weight")):
                    weight.mul_(10)
        return model

    return make


def prompt(seed: int, num_text: int, grid: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """One example (B = 1): text, then an image of ``grid`` patches (h, w), then text again."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, VOCABULARY, (num_text,), generator=generator)
    if grid is None:
        return {"input_ids": ids[None]}
    image = torch.full((grid[0] * grid[1] // 4,), IMAGE)
    ids = torch.cat([ids[:2], torch.tensor([3]), image, torch.tensor([4]), ids[2:]])[None]
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(grid[0] * grid[1], 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, *grid]]),
    }


@pytest.fixture(scope="session")
def prompts() -> Callable[..., dict[str, Tensor]]:
    """``prompt`` for the test modules, which cannot import this file."""
    return prompt


def changed_copy(copy: Path, change: str) -> Path:
    """The golden checkpoint with one thing wrong."""
    shutil.copytree(GOLDEN, copy)
    weights = load_file(copy / "model.safetensors")
    key = "model.layers.1.moe.experts.2.up_proj.weight"
    if change == "expert":
        del weights[key]
    elif change == "norm":
        del weights["model.norm.weight"]
    elif change == "unknown":
        weights["model.layers.0.moe.extra.weight"] = torch.zeros(1)
    elif change == "shape":
        weights["model.norm.weight"] = torch.zeros(3)
    save_file(weights, copy / "model.safetensors")
    if change == "truncated":
        whole = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif change == "config":
        (copy / "config.json").write_text("{")
    elif change == "no vision":
        flat = json.loads((copy / "config.json").read_text())
        del flat["vision_config"]
        (copy / "config.json").write_text(json.dumps(flat))
    elif change == "no weights":
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    return copy


@pytest.fixture(
    params=[
        ("expert", "2.up_proj"),
        ("norm", "missing: model.language_model.norm.weight"),
        ("unknown", "not known: model.language_model.layers.0.moe.extra.weight"),
        ("shape", "another shape: model.language_model.norm.weight"),
        ("truncated", "model.safetensors cannot be read"),
        ("config", "config.json"),
        ("no vision", "vision_config"),
        ("no weights", "no model.safetensors and no model.safetensors.index.json, only pickled"),
    ],
    ids=lambda param: param[0],
)
def misfit(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """The released golden checkpoint with one thing wrong, and what the refusal must say of it."""
    change, named = request.param
    return changed_copy(tmp_path / "changed", change), named


@pytest.fixture(scope="session")
def randomise_adapters() -> Callable[..., None]:
    """Give every adapter but those of ``untrained`` an effect: B starts at zero, where it has none."""

    def randomise(model: nn.Module, untrained: str = "nothing") -> None:
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if ".lora_B." in name and untrained not in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)

    return randomise
