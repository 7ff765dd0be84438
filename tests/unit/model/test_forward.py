"""The whole model's forward pass: packed rows, checkpointed gradients, what is in the output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.router import record_router_logits

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]


def packed_positions(model: EchoVLMForConditionalGeneration, one: dict[str, Tensor]) -> Tensor:
    """Position in the example, then transformers' own M-RoPE planes."""
    ids_1T = one["input_ids"]
    kinds_1T = one.get("mm_token_type_ids", torch.zeros_like(ids_1T))
    mrope_31T, _ = model.model.get_rope_index(ids_1T, kinds_1T, image_grid_thw=one.get("image_grid_thw"))
    return torch.cat([torch.arange(ids_1T.shape[1])[None], mrope_31T[:, 0]])


@torch.no_grad()
@pytest.mark.parametrize("mix", ["scalar", "token"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=["float32", "bfloat16"]
)
def test_packed_rows_give_the_logits_of_the_examples_alone(
    build: Build, prompts: Prompts, mix: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = build(mix=mix).to(dtype)
    assert model.config._attn_implementation == "sdpa"
    rows = [
        [prompts(1, 9, (4, 6)), prompts(2, 13), prompts(3, 5, (4, 4))],
        [prompts(4, 8, (4, 4)), prompts(5, 7, (4, 6)), prompts(6, 12)],
    ]
    ids_BT = torch.stack([torch.cat([one["input_ids"][0] for one in row]) for row in rows])
    positions_4BT = torch.stack([torch.cat([packed_positions(model, o) for o in row], 1) for row in rows], 1)
    flat = [one for row in rows for one in row]
    images = {
        key: torch.cat([one[key] for one in flat if key in one]) for key in ("pixel_values", "image_grid_thw")
    }
    packed_BTV = model(input_ids=ids_BT, position_ids=positions_4BT, **images).logits
    alone_BTV = torch.stack([torch.cat([model(**one).logits[0] for one in row]) for row in rows])

    def distance(logits_BTV: Tensor) -> float:  # in bfloat16 a near tie may be routed otherwise: no maximum
        return float((logits_BTV - alone_BTV).float().norm() / alone_BTV.float().norm())

    assert distance(packed_BTV) < tolerance
    # With the three M-RoPE planes alone the examples do see each other.
    assert distance(model(input_ids=ids_BT, position_ids=positions_4BT[1:], **images).logits) > 0.1


def gradients(model: EchoVLMForConditionalGeneration, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    out = model(**inputs, labels=inputs["input_ids"], output_router_logits=True)
    (out.loss + out.aux_loss).backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("mix", ["scalar", "token"])
def test_gradient_checkpointing_gives_the_same_gradients(build: Build, prompts: Prompts, mix: str) -> None:
    inputs = prompts(1, 12, (4, 6))
    plain = build(mix=mix, aux_loss_form="switch").train()
    expected = gradients(plain, inputs)
    model = build(mix=mix, aux_loss_form="switch").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(layer.gradient_checkpointing for layer in model.model.language_model.layers)
    torch.testing.assert_close(gradients(model, inputs), expected, rtol=1e-4, atol=1e-6)
    assert any(".router." in name for name in expected)


def test_router_logits_are_recorded_once_and_carry_gradients_through_a_checkpoint(build: Build) -> None:
    block = build().model.language_model.layers[0].mlp
    x_BTH = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with record_router_logits() as logits:
        checkpoint(block, x_BTH, use_reentrant=False)
    logits[0].square().sum().backward()
    assert len(logits) == 1
    expected_EH = 2 * (logits[0].detach().T @ x_BTH[0])
    torch.testing.assert_close(block.router.weight.grad, expected_EH)


@torch.no_grad()
def test_the_loss_is_the_language_models_alone(build: Build, prompts: Prompts) -> None:
    model, inputs = build(), prompts(1, 12)
    ids_BT = inputs["input_ids"]
    plain = model(**inputs, labels=ids_BT)
    full = model(**inputs, labels=ids_BT, output_router_logits=True)
    expected = torch.nn.functional.cross_entropy(plain.logits[0, :-1], ids_BT[0, 1:])
    assert plain.aux_loss is None and plain.router_logits is None
    assert full.aux_loss > 0
    torch.testing.assert_close(plain.loss, expected)
    assert full.loss == plain.loss
    assert torch.equal(full.logits, plain.logits)


@torch.no_grad()
def test_padding_changes_neither_the_balancing_loss_nor_the_logits(build: Build, prompts: Prompts) -> None:
    model, ids_BT = build(), prompts(1, 12)["input_ids"]
    padded = torch.nn.functional.pad(ids_BT, (0, 4), value=7)
    mask_BT = torch.nn.functional.pad(torch.ones_like(ids_BT), (0, 4))
    short = model(input_ids=ids_BT, output_router_logits=True)
    long = model(input_ids=padded, attention_mask=mask_BT, output_router_logits=True)
    torch.testing.assert_close(long.aux_loss, short.aux_loss)
    torch.testing.assert_close(long.logits[:, :12], short.logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_transformers_ways_of_calling_still_work(build: Build, prompts: Prompts) -> None:
    model, inputs = build(), prompts(1, 9, (4, 6))
    out = model(**inputs)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], out.logits)
    assert torch.equal(model(prompts(1, 9)["input_ids"]).logits, model(**prompts(1, 9)).logits)
    cached = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    again = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=False)
    assert cached.tolist() == again.tolist()
    with pytest.raises(ValueError, match="not_an_argument"):
        model.generate(**inputs, max_new_tokens=1, not_an_argument=1)
