"""How the routed experts are computed: "auto" for transformers' experts interface, and its CPU backends.

Exact, that is equal to "eager" up to rounding; an expert without tokens gets a gradient of zeros.

Shape legend: N tokens, H hidden size, E experts, K experts per token, I expert width, F = 2 I gate and up
stacked, S = N*K pairs of a token and one of its experts, C capacity, R rows that are computed: (S), (E, C) or
(E, N).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, grouped_mm, silu
from transformers.integrations.moe import (
    ExpertsInterface,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

Backend = Literal["every", "padded", "sorted", "grouped_mm", "batched_mm"]
AUTO = "auto"
_ALIGNMENT_BYTES = 16  # of every row that grouped_mm reads
_FREE_MULTIPLICATIONS = 1 << 20  # in a product: up to here pairs computed in vain cost less than a sort
_MAX_PADDED_TOKENS = 256  # from here on products fill the cores, and padding is only waste


class SortedPairs:
    """A row per pair, sorted by expert; stably, so that equal inputs are added up in equal order."""

    def __init__(self, index_NK: Tensor, num_experts: int) -> None:
        top_k = index_NK.shape[1]
        self.expert_S = index_NK.reshape(-1)
        self.pairs_E = self.expert_S.bincount(minlength=num_experts)
        self.end_E = self.pairs_E.cumsum(0, dtype=torch.int32)
        place_S = torch.arange(len(self.expert_S), device=index_NK.device)
        self.start_N = place_S[::top_k].contiguous()
        position_S = torch.empty_like(place_S).scatter_(0, self.expert_S.argsort(stable=True), place_S)
        self.position_S, self.num_rows = self._rows(position_S)
        token_R = place_S.new_zeros(self.num_rows)
        self.token_R = token_R.scatter_(0, self.position_S, place_S // top_k)
        self.shape_NK = index_NK.shape

    def _rows(self, position_S: Tensor) -> tuple[Tensor, int]:
        """The row of each pair, of its place in sorted order; and how many rows there are."""
        return position_S, len(position_S)

    def spread(self, x_NH: Tensor) -> Tensor:
        """(N, H) to rows."""
        return x_NH.index_select(0, self.token_R)

    def collect(self, y_RH: Tensor) -> Tensor:
        """The sums over each token's pairs, in one pass: rows to (N, H)."""
        return embedding_bag(self.position_S, y_RH.flatten(0, -2), self.start_N, mode="sum")

    def spread_weights(self, weight_NK: Tensor) -> Tensor:
        """(N, K) to rows of one."""
        weight_R = weight_NK.new_zeros(self.num_rows)
        return weight_R.scatter_(0, self.position_S, weight_NK.reshape(-1))[:, None]

    def collect_weights(self, weight_R: Tensor) -> Tensor:
        """One value of every row to (N, K)."""
        return weight_R.flatten().index_select(0, self.position_S).view(self.shape_NK)

    def product(self, one: Tensor, other: Tensor) -> Tensor:
        """Rows times their expert's matrix, or an expert's rows transposed times the same rows of others."""
        return grouped_mm(one, other, offs=self.end_E)


class PaddedPairs(SortedPairs):
    """The same with as many rows for each expert as the fullest has: (E, C, ...).

    Spare rows repeat the first token and are weighed by zero (see EveryPair for what that costs). One batched
    product costs less than small ones in turn. At worst all go to the same experts and C = N.
    """

    def _rows(self, position_S: Tensor) -> tuple[Tensor, int]:
        num_experts = len(self.pairs_E)
        self.capacity = int(self.pairs_E.max())
        first_E = torch.arange(num_experts, device=position_S.device) * self.capacity
        shift_E = first_E - self.end_E + self.pairs_E
        return position_S + shift_E[self.expert_S], num_experts * self.capacity

    def spread(self, x_NH: Tensor) -> Tensor:
        """(N, H) to (E, C, H)."""
        return super().spread(x_NH).view(len(self.pairs_E), self.capacity, x_NH.shape[1])

    def spread_weights(self, weight_NK: Tensor) -> Tensor:
        """(N, K) to (E, C, 1)."""
        return super().spread_weights(weight_NK).view(len(self.pairs_E), self.capacity, 1)

    def product(self, one: Tensor, other: Tensor) -> Tensor:
        """One matrix product per expert."""
        return torch.bmm(one, other)


class EveryPair:
    """A row per expert and token, weighed by zero where the router did not choose it: nothing is sorted.

    For few tokens only. A value that is infinite in an expert that was not chosen would become NaN.
    """

    def __init__(self, index_NK: Tensor, num_experts: int) -> None:
        self.index_NK, self.num_experts = index_NK, num_experts

    def spread(self, x_NH: Tensor) -> Tensor:
        """(N, H) to (E, N, H)."""
        return x_NH.expand(self.num_experts, *x_NH.shape)

    def collect(self, y_ENH: Tensor) -> Tensor:
        """(E, N, H) to (N, H)."""
        return y_ENH.sum(0)

    def spread_weights(self, weight_NK: Tensor) -> Tensor:
        """(N, K) to (E, N, 1)."""
        weight_EN = weight_NK.new_zeros(self.num_experts, len(weight_NK))
        weight_EN.T.scatter_(1, self.index_NK, weight_NK)
        return weight_EN[..., None]

    def collect_weights(self, weight_EN: Tensor) -> Tensor:
        """(E, N) to (N, K)."""
        return weight_EN.T.gather(1, self.index_NK)

    def product(self, one: Tensor, other: Tensor) -> Tensor:
        """One matrix product per expert."""
        return torch.bmm(one, other)


class RoutedExperts(torch.autograd.Function):
    """Gated MLPs (SiLU) of the experts, their weighed outputs summed.

    Autograd does not know that sorted pairs are a permutation: it puts the gradient of a gather back row by
    row, where another gather does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: Tensor,
        weight_NK: Tensor,
        gate_up_EFH: Tensor,
        down_EHI: Tensor,
        rows: SortedPairs | EveryPair,
    ) -> Tensor:
        """(N, H)."""
        x_RH, weight_R1 = rows.spread(x_NH), rows.spread_weights(weight_NK)
        gate_up_RF = rows.product(x_RH, gate_up_EFH.mT)
        gate_RI, up_RI = gate_up_RF.chunk(2, dim=-1)
        act_RI = silu(gate_RI)
        # Weighed before the product: rows are narrower here than after it.
        hidden_RI = (act_RI * up_RI).mul_(weight_R1)
        y_RH = rows.product(hidden_RI, down_EHI.mT)
        ctx.save_for_backward(x_RH, weight_R1, gate_up_RF, act_RI, hidden_RI, gate_up_EFH, down_EHI)
        ctx.rows = rows
        return rows.collect(y_RH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the hidden states, of the routing weights and of both stacks of weights."""
        x_RH, weight_R1, gate_up_RF, act_RI, hidden_RI, gate_up_EFH, down_EHI = ctx.saved_tensors
        rows = ctx.rows
        grad_RH = rows.spread(grad_NH)
        grad_down_EHI = rows.product(grad_RH.mT, hidden_RI)
        grad_hidden_RI = rows.product(grad_RH, down_EHI)
        grad_gate_up_RF, grad_weight_R = _gate_backward(grad_hidden_RI, gate_up_RF, act_RI, weight_R1)
        grad_gate_up_EFH = rows.product(grad_gate_up_RF.mT, x_RH)
        grad_x_NH = rows.collect(rows.product(grad_gate_up_RF, gate_up_EFH))
        return grad_x_NH, rows.collect_weights(grad_weight_R), grad_gate_up_EFH, grad_down_EHI, None


def _gate_backward(
    grad_RI: Tensor, gate_up_RF: Tensor, act_RI: Tensor, weight_R1: Tensor
) -> tuple[Tensor, Tensor]:
    """Backward of ``silu(gate) * up * weight``: gradients (R, F) and (R). Overwrites ``grad_RI``."""
    gate_RI, up_RI = gate_up_RF.chunk(2, dim=-1)
    grad_gate_up_RF = torch.empty_like(gate_up_RF)
    grad_gate_RI, grad_up_RI = grad_gate_up_RF.chunk(2, dim=-1)
    unweighed_RI = act_RI * grad_RI
    torch.mul(unweighed_RI, weight_R1, out=grad_up_RI)
    grad_weight_R = unweighed_RI.mul_(up_RI).sum(-1)
    grad_RI.mul_(weight_R1).mul_(up_RI)
    torch.ops.aten.silu_backward.grad_input(grad_RI, gate_RI, grad_input=grad_gate_RI)
    return grad_gate_up_RF, grad_weight_R


_ROWS: dict[Backend, type[SortedPairs] | type[EveryPair]] = {
    "every": EveryPair,
    "padded": PaddedPairs,
    "sorted": SortedPairs,
}


def choose(num_tokens: int, top_k: int, shape_EHI: tuple[int, ...], itemsize: int, device: str) -> Backend:
    """The backend for so many tokens. From shapes alone: equal inputs give equal results on every run.

    Measured on a CPU (docs/benchmarks.md). Elsewhere, not measured, as transformers does: grouped_mm, but
    batched_mm for the few tokens of decoding, here as long as it copies no more weights than there are.
    """
    E, H, I = shape_EHI  # noqa: E741
    if device != "cpu":
        return "batched_mm" if num_tokens * top_k <= E else "grouped_mm"
    if num_tokens * (E - top_k) * H * I < _FREE_MULTIPLICATIONS:
        return "every"
    aligned = all(width * itemsize % _ALIGNMENT_BYTES == 0 for width in (H, I))
    # Fewer pairs than experts: the batched product would read the weights of experts without tokens.
    padded = num_tokens * top_k >= E and num_tokens <= _MAX_PADDED_TOKENS
    return "padded" if padded or not aligned else "sorted"


def auto_experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts function "auto": (N, H), indices (N, K) and weights (N, K) to (N, H)."""
    down_EHI = self.down_proj
    num_tokens, top_k = top_k_index.shape
    device = hidden_states.device.type
    backend = choose(num_tokens, top_k, down_EHI.shape, down_EHI.element_size(), device)
    if backend in _ROWS and _is_plain(self):
        return routed_experts_forward(_ROWS[backend], self, hidden_states, top_k_index, top_k_weights)
    function = batched_mm_experts_forward if backend == "batched_mm" else grouped_mm_experts_forward
    return function(self, hidden_states, top_k_index, top_k_weights)


def _is_plain(experts: Any) -> bool:
    """Whether ``RoutedExperts`` computes them: the interface is global, so any model can ask for "auto"."""
    plain = experts.has_gate and experts.is_concatenated and not (experts.has_bias or experts.is_transposed)
    return plain and not experts._is_expert_parallel and experts.config.hidden_act == "silu"


def routed_experts_forward(
    layout: type[SortedPairs] | type[EveryPair], self: Any, x_NH: Tensor, index_NK: Tensor, weight_NK: Tensor
) -> Tensor:
    """``RoutedExperts`` as an experts function. (N, H)."""
    dtype = self.down_proj.dtype  # under autocast the hidden states may have another one
    rows = layout(index_NK, self.num_experts)
    y_NH: Tensor = RoutedExperts.apply(
        x_NH.to(dtype), weight_NK.to(dtype), self.gate_up_proj, self.down_proj, rows
    )
    return y_NH.to(x_NH.dtype)


def register_backends() -> None:
    """Make transformers know "auto"; safe to call again."""
    ExpertsInterface.register(AUTO, auto_experts_forward)
