"""The balancing loss (eq. 6-8) against loops, and its additivity over the parts of a global batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.router import balancing_loss, dispatch_counts, record_router_logits

Form = Literal["paper", "switch"]
FORMS: tuple[Form, ...] = ("paper", "switch")


def random_logits(num_tokens: int = 40) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits = [torch.randn(num_tokens, 4, generator=generator) * 2 for _ in range(3)]
    return logits, (torch.rand(num_tokens, generator=generator) < 0.7).long()


def written_out(logits: Sequence[Tensor], mask_N: Tensor, form: Form) -> float:
    """eq. 6, 7 and 8 with loops over layers, tokens and experts; two experts per token."""
    tokens = [t for t in range(len(mask_N)) if mask_N[t]]
    F = [[0.0] * 4 for _ in logits]
    G = [[0.0] * 4 for _ in logits]
    for layer, logits_NE in enumerate(logits):
        for t in tokens:
            f_E = logits_NE[t].tolist()
            total = sum(torch.tensor(f_E).exp().tolist())
            for e in range(4):
                F[layer][e] += (sum(other > f_E[e] for other in f_E) < 2) / len(tokens)
                G[layer][e] += torch.tensor(f_E[e]).exp().item() / total / len(tokens)
    if form == "paper":
        return sum(F[i][e] * G[i][e] for i in range(len(F)) for e in range(4)) / len(F)
    mean_F, mean_G = ([sum(one) / len(F) for one in zip(*which, strict=True)] for which in (F, G))
    return 4 * sum(f * g for f, g in zip(mean_F, mean_G, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_papers_sum(form: Form) -> None:
    logits, mask_N = random_logits()
    found = balancing_loss(
        logits,
        mask_N,
        global_counts_LE=dispatch_counts(logits, 2, mask_N),
        global_num_tokens=mask_N.sum(),
        form=form,
    )
    assert found.item() == pytest.approx(written_out(logits, mask_N, form), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_shares_of_two_unequal_parts_add_up_to_the_whole(form: Form) -> None:
    logits, mask_N = random_logits()

    def shares(cuts: Sequence[slice]) -> tuple[float, list[Tensor]]:
        leaves = [one.clone().requires_grad_() for one in logits]
        parts = [([leaf[cut] for leaf in leaves], mask_N[cut]) for cut in cuts]
        counts_LE = torch.stack([dispatch_counts(some, 2, mask) for some, mask in parts]).sum(0)
        losses = [
            balancing_loss(some, mask, global_counts_LE=counts_LE, global_num_tokens=mask_N.sum(), form=form)
            for some, mask in parts
        ]
        torch.stack(losses).sum().backward()
        return sum(one.item() for one in losses), [leaf.grad for leaf in leaves if leaf.grad is not None]

    whole, whole_grads = shares([slice(0, 40)])
    split, split_grads = shares([slice(0, 11), slice(11, 40)])
    assert split == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(split_grads, whole_grads)
    # Each part on its own counts is another loss: the reduction of the counts is needed.
    alone = [
        balancing_loss(
            [one[cut] for one in logits],
            mask_N[cut],
            global_counts_LE=dispatch_counts([one[cut] for one in logits], 2, mask_N[cut]),
            global_num_tokens=mask_N[cut].sum(),
            form=form,
        ).item()
        for cut in (slice(0, 11), slice(11, 40))
    ]
    assert sum(alone) / 2 != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_where_the_tokens_went_even_at_ties(
    build: Callable[..., EchoVLMForConditionalGeneration], dtype: torch.dtype
) -> None:
    router = build().model.language_model.layers[0].mlp.router.to(dtype)
    with torch.no_grad():
        router.weight[1:3] = router.weight[0]  # three experts with equal logits for every token
        with record_router_logits() as logits:
            index_NK, _ = router(torch.randn(50, 64, generator=torch.Generator().manual_seed(1)).to(dtype))
    counts_LE = dispatch_counts(logits, 2, torch.ones(50))
    assert counts_LE[0].tolist() == torch.bincount(index_NK.flatten(), minlength=4).tolist()


def test_masked_tokens_count_for_nothing() -> None:
    logits, mask_N = random_logits()
    other = [torch.where(mask_N[:, None] == 1, one, torch.full_like(one, 9.0)) for one in logits]
    assert torch.equal(dispatch_counts(logits, 2, mask_N), dispatch_counts(other, 2, mask_N))
    assert dispatch_counts(logits, 2, mask_N).sum(-1).tolist() == [2 * mask_N.sum().item()] * 3
