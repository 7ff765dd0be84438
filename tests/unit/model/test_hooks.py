"""Routing as the layers did it, and gradients to vision tokens against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from echoray.errors import ModelLoadError
from echoray.model.hooks import Modality, trace_routing, vision_gradients
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.router import Router, record_router_logits

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize("mix", ["scalar", "token"])
def test_the_trace_is_what_the_routers_returned(build: Build, prompts: Prompts, mix: str) -> None:
    model, inputs = build(mix=mix), prompts(1, 12, (4, 6))
    seen: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _module, _in, out: seen.append(out))
    trace = trace_routing(model, **inputs)
    assert trace.layers == (0, 1)
    assert torch.equal(trace.expert_LNK, torch.stack([index for index, _ in seen]))
    torch.testing.assert_close(trace.weight_LNK, torch.stack([weight for _, weight in seen]))


def test_modality_row_and_load_of_a_padded_batch(build: Build, prompts: Prompts) -> None:
    model, image, text = build(moe_layers=(1,)), prompts(1, 12, (4, 6)), prompts(2, 9)["input_ids"]
    length = image["input_ids"].shape[1]
    left = length - text.shape[1]
    ids_BT = torch.cat([image["input_ids"], pad(text, (left, 0), value=7)])
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :left] = 0
    trace = trace_routing(
        model,
        **{**image, "input_ids": ids_BT, "attention_mask": mask_BT, "mm_token_type_ids": (ids_BT == 5).int()},
    )
    assert trace.layers == (1,)
    counts = [(trace.modality_N == one).sum().item() for one in Modality]
    assert counts == [left, length - 6 + text.shape[1], 6]
    assert trace.row_N.tolist() == [0] * length + [1] * length
    load_LE = trace.load_LE(trace.modality_N == Modality.IMAGE)
    chosen = trace.expert_LNK[0, trace.modality_N == Modality.IMAGE].flatten()
    assert load_LE.sum() == pytest.approx(1)
    assert load_LE[0].tolist() == pytest.approx([(chosen == e).float().mean().item() for e in range(4)])


def test_a_dense_model_has_no_routing(build: Build, prompts: Prompts) -> None:
    with pytest.raises(ModelLoadError, match="dense"):
        trace_routing(build(num_experts=0), **prompts(1, 9))


def test_nothing_is_recorded_unless_asked_for(build: Build, prompts: Prompts) -> None:
    """Inside of somebody else's recording too: it gets the logits, the model keeps none."""
    model, inputs = build(), prompts(1, 9)
    with record_router_logits() as logits:
        assert model(**inputs).router_logits is None
        assert len(logits) == 2
        assert len(model(**inputs, output_router_logits=True).router_logits) == 2
        assert len(logits) == 2


def test_vision_gradients_are_those_of_finite_differences(build: Build, prompts: Prompts) -> None:
    model, one = build(experts_implementation="eager").double(), prompts(1, 12, (4, 6))
    other = prompts(2, 10, (6, 4))
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([one["input_ids"], other["input_ids"]], 1),
        "mm_token_type_ids": torch.cat([one["mm_token_type_ids"], other["mm_token_type_ids"]], 1),
        "pixel_values": torch.cat([one["pixel_values"], other["pixel_values"]]).double(),
        "image_grid_thw": torch.cat([one["image_grid_thw"], other["image_grid_thw"]]),
    }

    def score(logits_BTV: Tensor) -> Tensor:
        return logits_BTV[0, -3:].log_softmax(-1)[:, 20].sum()

    found = vision_gradients(model, score, **inputs)
    assert found.grids == ((2, 3), (3, 2))
    assert [tuple(grad.shape) for _, grad in found.per_image()] == [(2, 3, 64), (3, 2, 64)]
    assert all(weight.grad is None for weight in model.parameters())
    direction = torch.randn(found.features_PH.shape, generator=torch.Generator().manual_seed(1)).double()

    @torch.no_grad()
    def shifted(step: float) -> Tensor:
        hook = model.model.visual.merger.register_forward_hook(
            lambda *_: found.features_PH + step * direction
        )
        try:
            return score(model(**inputs).logits)
        finally:
            hook.remove()

    slope = (shifted(1e-4) - shifted(-1e-4)) / 2e-4
    torch.testing.assert_close((found.gradients_PH * direction).sum(), slope, rtol=1e-3, atol=1e-6)
    assert slope.abs() > 1e-3
