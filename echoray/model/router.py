"""Top-k routing and the load-balancing loss (She et al., EchoVLM, eq. 4 and 6-8).

Shape legend: N tokens, H hidden size, E experts, K experts per token, L layers with experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from echoray.model.configuration import AuxLossForm, EchoVLMTextConfig

_recorded: ContextVar[list[Tensor] | None] = ContextVar("router_logits", default=None)


@contextmanager
def record_router_logits() -> Iterator[list[Tensor]]:
    """Collect every router's logits (N, E), in layer order, of the forward passes inside the block.

    They carry gradients. Call backward() after the block: with gradient checkpointing it runs the layers a
    second time, which must not be recorded.
    """
    logits: list[Tensor] = []
    token = _recorded.set(logits)
    try:
        yield logits
    finally:
        _recorded.reset(token)


class Router(nn.Module):
    """Choose K of E experts per token and weigh them.

    mix="scalar": softmax over the selected logits (eq. 4). mix="token" (released checkpoint): softmax over
    all experts, the selected ones not renormalised unless ``norm_topk_prob``.
    """

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.renormalise = config.mix == "scalar" or config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (N, K) int64 and weights (N, K) in the dtype of ``x_NH``."""
        logits_NE = functional.linear(x_NH, self.weight)
        if (recorded := _recorded.get()) is not None:
            recorded.append(logits_NE)
        index_NK, weight_NK = self.choose(logits_NE)
        return index_NK, weight_NK.to(x_NH.dtype)

    def choose(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (N, K) int64 of the chosen experts and their weights (N, K) in float32."""
        index_NK = select(logits_NE, self.num_experts_per_tok)
        if self.renormalise:
            return index_NK, logits_NE.gather(-1, index_NK).float().softmax(-1)
        return index_NK, logits_NE.float().softmax(-1).gather(-1, index_NK)


def select(logits_NE: Tensor, num_experts_per_tok: int) -> Tensor:
    """The experts (N, K) that each token goes to; routing and its counts share this, so ties fall alike."""
    return logits_NE.detach().topk(num_experts_per_tok, dim=-1).indices


@torch.no_grad()
def dispatch_counts(logits: Sequence[Tensor], num_experts_per_tok: int, mask_N: Tensor) -> Tensor:
    """How many unmasked tokens each expert of each layer gets (L, E); additive over batches and ranks."""
    counts = []
    for logits_NE in logits:
        index_NK = select(logits_NE, num_experts_per_tok)
        hits_NE = functional.one_hot(index_NK, logits_NE.shape[-1]).sum(1)
        counts.append((hits_NE * mask_N[:, None]).sum(0))
    return torch.stack(counts).float()


def balancing_loss(
    logits: Sequence[Tensor],
    mask_N: Tensor,
    *,
    global_counts_LE: Tensor,
    global_num_tokens: Tensor | float,
    form: AuxLossForm = "paper",
) -> Tensor:
    """This batch's additive share of the balancing loss of the global batch (scalar).

    Summed over all micro-batches and ranks it equals sum_e F_e G_e (eq. 8) with F_e (eq. 6) and G_e (eq. 7)
    taken over the global batch; F_e has no gradient, so the shares' gradients add up to the whole one's.
    "paper": eq. 8 per layer, mean over layers. "switch": F_e and G_e pooled over layers, times E.
    """
    mask_N1 = mask_N[:, None].float()
    prob_sums_LE = torch.stack([(one.float().softmax(-1) * mask_N1).sum(0) for one in logits])
    share_LE = global_counts_LE / global_num_tokens
    gate_LE = prob_sums_LE / global_num_tokens
    if form == "switch":
        return share_LE.shape[-1] * (share_LE.mean(0) * gate_LE.mean(0)).sum()
    return (share_LE * gate_LE).sum(-1).mean()
