"""The CPU backends of the routed experts and the choice by size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from echoray.model import expert_backends
from echoray.model.configuration import EchoVLMTextConfig
from echoray.model.dual_path import Experts
from echoray.model.expert_backends import (
    EveryPair,
    PaddedPairs,
    RoutedExperts,
    SortedPairs,
    choose,
    routed_experts_forward,
)
from echoray.model.modeling import EchoVLMForConditionalGeneration

Build = Callable[..., EchoVLMForConditionalGeneration]
E, H, I = 4, 16, 8  # noqa: E741
ROWS = [SortedPairs, PaddedPairs, EveryPair]


def inputs(num_tokens: int, top_k: int, *, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, indices that leave the last expert without tokens, and weights; in float64."""
    generator = torch.Generator().manual_seed(seed)
    x_NH = torch.randn(num_tokens, H, generator=generator, dtype=torch.float64)
    index_NK = torch.rand(num_tokens, E - 1, generator=generator).topk(top_k).indices
    weight_NK = torch.rand(num_tokens, top_k, generator=generator, dtype=torch.float64)
    return x_NH, index_NK, weight_NK


def experts(implementation: str, hidden_act: str = "silu", width: int = I) -> Experts:
    """Random experts, the same at every call."""
    config = EchoVLMTextConfig(
        hidden_size=H, moe_intermediate_size=width, num_experts=E, hidden_act=hidden_act
    )
    config._experts_implementation = implementation
    module = Experts(config)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return module


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 1), (1, 2), (7, 2), (5, 3)])
def test_the_gradients_are_those_of_finite_differences(
    num_tokens: int, top_k: int, rows: type[SortedPairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_hand(x: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
        """grouped_mm for float64, which the kernel does not know."""
        bounds = [0, *offs.tolist()]
        groups = [slice(*pair) for pair in pairwise(bounds)]
        if weight.ndim == 2:
            return torch.stack([x[:, one] @ weight[one] for one in groups])
        return torch.cat([x[one] @ weight[expert] for expert, one in enumerate(groups)])

    monkeypatch.setattr(expert_backends, "grouped_mm", by_hand)
    x_NH, index_NK, weight_NK = inputs(num_tokens, top_k)
    stacks = [one.detach().double().requires_grad_() for one in experts("auto").parameters()]
    args = (x_NH.requires_grad_(), weight_NK.requires_grad_(), *stacks)
    assert torch.autograd.gradcheck(lambda *some: RoutedExperts.apply(*some, rows(index_NK, E)), args)


def test_pairs_are_sorted_by_expert_and_then_by_token() -> None:
    index_NK = torch.tensor([[2, 0], [0, 2], [2, 3]])
    rows = SortedPairs(index_NK, E)
    assert rows.token_R.tolist() == [0, 1, 0, 1, 2, 2]
    assert rows.position_S.tolist() == [2, 0, 1, 3, 4, 5]
    assert rows.end_E.tolist() == [2, 2, 5, 6]
    padded = PaddedPairs(index_NK, E)
    weight_EC1 = padded.spread_weights(torch.arange(1.0, 7.0).view(3, 2))
    assert weight_EC1.squeeze(-1).tolist() == [[2, 3, 0], [0, 0, 0], [1, 4, 5], [6, 0, 0]]
    assert padded.spread(torch.tensor([[7.0], [8.0], [9.0]]))[2].flatten().tolist() == [7, 8, 9]


@pytest.mark.parametrize("num_tokens", [1, 16, 128, 300])
def test_equal_inputs_give_equal_bits(build: Build, num_tokens: int) -> None:
    def run() -> list[Tensor]:
        block = build().model.language_model.layers[0].mlp
        x_BTH = torch.randn(1, num_tokens, 64, generator=torch.Generator().manual_seed(2))
        y_BTH = block(x_BTH.requires_grad_())
        y_BTH.square().sum().backward()
        return [y_BTH, x_BTH.grad, *(one.grad for one in block.parameters())]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("frozen", ["", "gate_up_proj", "down_proj"])
def test_checkpointing_and_frozen_weights_leave_the_other_gradients(
    frozen: str, rows: type[SortedPairs]
) -> None:
    def run(ours: bool, checkpointed: bool) -> dict[str, Tensor | None]:
        module = experts("eager")
        function = partial(routed_experts_forward, rows, module) if ours else module
        for name, weight in module.named_parameters():
            weight.requires_grad_(name != frozen)
        x_NH, index_NK, weight_NK = inputs(9, 2)
        args = (x_NH.float().requires_grad_(), index_NK, weight_NK.float().requires_grad_())
        y_NH = checkpoint(function, *args, use_reentrant=False) if checkpointed else function(*args)
        y_NH.sum().backward()
        grads = {name: one.grad for name, one in module.named_parameters()}
        return {"x": args[0].grad, "weight": args[2].grad, **grads}

    expected = run(False, False)
    assert [name for name, one in expected.items() if one is None] == [frozen] * bool(frozen)
    for checkpointed in (False, True):
        torch.testing.assert_close(run(True, checkpointed), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "shape_EHI", "itemsize", "device", "expected"),
    [
        (21, 2, (4, 192, 128), 4, "cpu", "every"),
        (22, 2, (4, 192, 128), 4, "cpu", "padded"),
        (256, 2, (4, 192, 128), 4, "cpu", "padded"),
        (257, 2, (4, 192, 128), 4, "cpu", "sorted"),
        (257, 4, (4, 192, 128), 4, "cpu", "every"),  # every token goes to every expert
        (1, 2, (4, 1536, 768), 2, "cpu", "sorted"),  # two experts are not read
        (2, 2, (4, 1536, 768), 2, "cpu", "padded"),
        (300, 2, (4, 1536, 12), 4, "cpu", "sorted"),  # rows of 48 bytes
        (300, 2, (4, 1536, 12), 2, "cpu", "padded"),  # rows of 24 bytes: grouped_mm refuses them
        (300, 2, (4, 1534, 128), 4, "cpu", "padded"),
        (2, 2, (4, 192, 128), 2, "cuda", "batched_mm"),  # as many copies as experts
        (3, 2, (4, 192, 128), 2, "cuda", "grouped_mm"),
    ],
)
def test_the_choice_by_size(
    num_tokens: int, top_k: int, shape_EHI: tuple[int, ...], itemsize: int, device: str, expected: str
) -> None:
    assert choose(num_tokens, top_k, shape_EHI, itemsize, device) == expected


@pytest.mark.parametrize(
    ("hidden_act", "width"), [("silu", I), ("gelu", I), ("silu", 6)], ids=["plain", "gelu", "unaligned"]
)
def test_auto_computes_every_activation_and_width(hidden_act: str, width: int) -> None:
    x_NH, index_NK, weight_NK = inputs(9000, 2)
    args = (x_NH.float(), index_NK, weight_NK.float())
    expected = experts("eager", hidden_act, width)(*args)
    torch.testing.assert_close(experts("auto", hidden_act, width)(*args), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_no_tokens_at_all_are_no_special_case(rows: type[SortedPairs]) -> None:
    module = experts("auto")
    nothing = (torch.zeros(0, H), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    y_NH = routed_experts_forward(rows, module, *nothing)
    y_NH.sum().backward()
    assert y_NH.shape == (0, H)
    assert not any(one.grad.any() for one in module.parameters())


def test_hidden_states_may_have_another_dtype_than_the_weights() -> None:
    """As under autocast."""
    x_NH, index_NK, weight_NK = inputs(9, 2)
    expected = experts("auto")(x_NH.float(), index_NK, weight_NK.float())
    found = experts("auto").bfloat16()(x_NH.float(), index_NK, weight_NK.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
