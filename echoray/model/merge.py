"""Fold LoRA into the base weights, and prove that the merged model is the one that was trained.

Shape legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from echoray.errors import ExportError
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import has_adapters

_PROBE_TEXT_TOKENS = 48
_PROBE_GRID_PATCHES = (4, 6)
# Relative Frobenius distance of the logits. A merge reorders sums; it must do no more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@torch.no_grad()
def merge_adapters(model: EchoVLMForConditionalGeneration) -> None:
    """Fold every LoRA layer into its base weight and put the plain layer back, in place; checked twice.

    Raises ExportError where an adapter leaves its weight as it was (it was never trained, or the dtype is too
    coarse for it), or where the merged model's logits on a probe are not those of the model with adapters.
    A model without adapters is left alone.
    """
    if not has_adapters(model):
        return
    model.eval()
    probe = probe_inputs(model)
    expected_BTV = model(**probe).logits.float()
    unchanged = [name for name, layer in list(_adapted_layers(model)) if not _merged(model, name, layer)]
    if unchanged:
        raise ExportError(
            f"{len(unchanged)} adapters change nothing: {', '.join(unchanged[:5])}",
            hint="train the stage first (adapters of the vision part need examples with images)",
        )
    found_BTV = model(**probe).logits.float()
    distance = float((found_BTV - expected_BTV).norm() / expected_BTV.norm())
    if not distance <= _TOLERANCE[model.dtype]:  # also where it is not a number
        raise ExportError(
            f"the merged model's logits differ by {distance:.2g} (relative), "
            f"expected at most {_TOLERANCE[model.dtype]:.2g}",
            hint="export in float32; if that fails too, the adapters are not those of this model",
        )


def _merged(model: nn.Module, name: str, layer: Any) -> bool:
    """Merge one layer in place; whether its weight is another now."""
    before = layer.get_base_layer().weight.detach().clone()
    layer.merge(safe_merge=True)
    parent, _, child = name.rpartition(".")
    plain = layer.get_base_layer()
    setattr(model.get_submodule(parent), child, plain)
    return not torch.equal(before, plain.weight)


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def probe_inputs(model: EchoVLMForConditionalGeneration) -> dict[str, Tensor]:
    """One example (B = 1) of random text around one random image, the same on every call."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    vision = config.vision_config
    height, width = _PROBE_GRID_PATCHES
    patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pads = torch.full((height * width // vision.spatial_merge_size**2,), config.image_token_id)
    special = {
        config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id
    }  # fmt: skip
    words = [token for token in range(config.text_config.vocab_size) if token not in special]
    picked = torch.randint(len(words), (_PROBE_TEXT_TOKENS,), generator=generator)
    text = torch.tensor(words)[picked]
    image = [torch.tensor([config.vision_start_token_id]), pads, torch.tensor([config.vision_end_token_id])]
    ids_BT = torch.cat([text[:8], *image, text[8:]])[None]
    pixels = torch.randn(height * width, patch_values, generator=generator)
    return {
        "input_ids": ids_BT.to(model.device),
        "mm_token_type_ids": (ids_BT == config.image_token_id).int().to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
        "image_grid_thw": torch.tensor([[1, height, width]], device=model.device),
    }
