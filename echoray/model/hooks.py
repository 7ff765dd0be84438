"""Look into a forward pass: where every token was routed, and what the answer owes to each vision token.

Shape legend: B rows, T tokens, N = B*T, L layers with experts, E experts, K experts per token, P vision
tokens (patches after the 2 x 2 merge), H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from echoray.errors import ModelLoadError
from echoray.model.modeling import EchoVLMForConditionalGeneration, moe_layer_indices


class Modality(IntEnum):
    """What a token of the prompt is."""

    PADDING = 0
    TEXT = 1
    IMAGE = 2


@dataclass(frozen=True)
class Routing:
    """Where each token of one batch went; N counts row by row, padding included.

    ``row_N`` is the token's row, by which the caller knows its examination system.
    """

    layers: tuple[int, ...]
    expert_LNK: Tensor
    weight_LNK: Tensor
    modality_N: Tensor
    row_N: Tensor
    num_experts: int

    def load_LE(self, chosen_N: Tensor) -> Tensor:  # noqa: N802  (the shape)
        """Share of the choices of the tokens in ``chosen_N`` (bool) that fell on each expert (L, E)."""
        picked = torch.nn.functional.one_hot(self.expert_LNK[:, chosen_N], self.num_experts)
        return picked.sum((1, 2)).float() / max(1, int(chosen_N.sum()) * self.expert_LNK.shape[-1])


@torch.no_grad()
def trace_routing(model: EchoVLMForConditionalGeneration, **inputs: Any) -> Routing:
    """Run ``model(**inputs)`` and return its routing; ModelLoadError for a model without experts.

    ``inputs`` are those of the model, with ``input_ids`` (B, T). Nothing is recorded outside of this call.
    """
    text = model.config.text_config
    layers = moe_layer_indices(text)
    if not layers:
        raise ModelLoadError("a dense model routes nothing", hint="name a model with experts")
    logits = model(**inputs, output_router_logits=True).router_logits
    blocks = (model.model.language_model.layers[index].mlp for index in layers)
    chosen = [block.router.choose(one) for block, one in zip(blocks, logits, strict=True)]
    ids_BT = inputs["input_ids"]
    modality_BT = torch.where(ids_BT == model.config.image_token_id, Modality.IMAGE, Modality.TEXT)
    if (mask_BT := inputs.get("attention_mask")) is not None:
        modality_BT = modality_BT.where(mask_BT.bool(), Modality.PADDING)
    return Routing(
        layers=layers,
        expert_LNK=torch.stack([index for index, _ in chosen]),
        weight_LNK=torch.stack([weight for _, weight in chosen]),
        modality_N=modality_BT.reshape(-1),
        row_N=torch.arange(ids_BT.shape[0]).repeat_interleave(ids_BT.shape[1]),
        num_experts=text.num_experts,
    )


@dataclass(frozen=True)
class VisionGradients:
    """Features and gradients (P, H) of the vision tokens, image after image; grids are (rows, columns)."""

    features_PH: Tensor
    gradients_PH: Tensor
    grids: tuple[tuple[int, int], ...]

    def per_image(self) -> list[tuple[Tensor, Tensor]]:
        """Features and gradients of each image, (rows, columns, H)."""
        sizes = [rows * columns for rows, columns in self.grids]
        parts = zip(self.features_PH.split(sizes), self.gradients_PH.split(sizes), self.grids, strict=True)
        return [(one.view(*grid, -1), other.view(*grid, -1)) for one, other, grid in parts]


def vision_gradients(
    model: EchoVLMForConditionalGeneration, score: Callable[[Tensor], Tensor], **inputs: Any
) -> VisionGradients:
    """The gradient of ``score(logits)`` (a scalar of logits (B, T, V)) to the projector's output.

    The basis of Grad-CAM style saliency (She et al., EchoVLM, figure 9). No parameter gets a gradient.
    ``inputs`` need ``pixel_values`` and ``image_grid_thw``.
    """
    features: list[Tensor] = []

    def keep(module: Any, arguments: Any, output_PH: Tensor) -> Tensor:
        # A leaf of its own: the score's graph begins here and not in the vision encoder.
        features.append(output_PH.detach().requires_grad_())
        return features[-1]

    handle = model.model.visual.merger.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits_BTV = model(**inputs).logits
            (gradients_PH,) = torch.autograd.grad(score(logits_BTV), features)
    finally:
        handle.remove()
    merge = model.config.vision_config.spatial_merge_size
    grids = tuple((h // merge, w // merge) for _, h, w in inputs["image_grid_thw"].tolist())
    return VisionGradients(features[0].detach(), gradients_PH, grids)
