"""How the routed experts are computed: "auto" for transformers' experts interface, and its CPU backend.

Exact, that is equal to "eager" up to rounding; an expert without tokens gets a gradient of zeros.

Shape legend: N tokens, H hidden size, E experts, K experts per token, I expert width, F = 2 I gate and up
stacked, S = N*K pairs of a token and one of its experts, sorted by expert, then by token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, grouped_mm, silu
from transformers.integrations.moe import (
    ExpertsInterface,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

Backend = Literal["sorted", "grouped_mm", "batched_mm", "eager"]
_ALIGNMENT_BYTES = 16  # of every row that grouped_mm reads


class Order(NamedTuple):
    """Pairs as the router gives them, token by token, and sorted by expert."""

    pair_S: Tensor  # which one each sorted pair is
    token_S: Tensor  # and of which token
    position_S: Tensor  # where each pair is in sorted order
    start_N: Tensor  # where each token's pairs begin
    end_E: Tensor  # where each expert's sorted pairs end; int32 for grouped_mm


def sort_by_expert(index_NK: Tensor, num_experts: int) -> Order:
    """Sort the pairs; stably, so that equal inputs are added up in equal order."""
    expert_S = index_NK.reshape(-1)
    pair_S = expert_S.argsort(stable=True)
    place_S = torch.arange(len(pair_S), device=pair_S.device)
    position_S = torch.empty_like(pair_S).scatter_(0, pair_S, place_S)
    end_E = expert_S.bincount(minlength=num_experts).cumsum(0, dtype=torch.int32)
    top_k = index_NK.shape[1]
    return Order(pair_S, pair_S // top_k, position_S, place_S[::top_k].contiguous(), end_E)


class SortedExperts(torch.autograd.Function):
    """Gated MLPs (SiLU) of the routed experts around one grouped matrix product per weight.

    Autograd does not know that the pairs are a permutation: it puts the gradient of a gather back row by row,
    where another gather does.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, weight_NK: Tensor, gate_up_EFH: Tensor, down_EHI: Tensor, index_NK: Tensor
    ) -> Tensor:
        """Each token's experts, weighed and summed (N, H)."""
        order = sort_by_expert(index_NK, len(down_EHI))
        x_SH = x_NH.index_select(0, order.token_S)
        weight_S1 = weight_NK.reshape(-1, 1).index_select(0, order.pair_S)
        gate_up_SF = grouped_mm(x_SH, gate_up_EFH.mT, offs=order.end_E)
        gate_SI, up_SI = gate_up_SF.chunk(2, dim=-1)
        act_SI = silu(gate_SI)
        # Weighed before the product: rows are narrower here than after it.
        hidden_SI = (act_SI * up_SI).mul_(weight_S1)
        y_SH = grouped_mm(hidden_SI, down_EHI.mT, offs=order.end_E)
        ctx.save_for_backward(x_SH, weight_S1, gate_up_SF, act_SI, hidden_SI, gate_up_EFH, down_EHI, *order)
        ctx.shape_NK = index_NK.shape
        return _sum_of_pairs(y_SH, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the hidden states, of the routing weights and of both stacks of weights."""
        x_SH, weight_S1, gate_up_SF, act_SI, hidden_SI, gate_up_EFH, down_EHI, *rest = ctx.saved_tensors
        order = Order(*rest)
        grad_SH = grad_NH.index_select(0, order.token_S)
        grad_down_EHI = grouped_mm(grad_SH.mT, hidden_SI, offs=order.end_E)
        grad_hidden_SI = grouped_mm(grad_SH, down_EHI, offs=order.end_E)
        grad_gate_up_SF, grad_weight_S = _gate_backward(grad_hidden_SI, gate_up_SF, act_SI, weight_S1)
        grad_gate_up_EFH = grouped_mm(grad_gate_up_SF.mT, x_SH, offs=order.end_E)
        grad_x_SH = grouped_mm(grad_gate_up_SF, gate_up_EFH, offs=order.end_E)
        grad_weight_NK = grad_weight_S.index_select(0, order.position_S).view(ctx.shape_NK)
        return _sum_of_pairs(grad_x_SH, order), grad_weight_NK, grad_gate_up_EFH, grad_down_EHI, None


def _gate_backward(
    grad_SI: Tensor, gate_up_SF: Tensor, act_SI: Tensor, weight_S1: Tensor
) -> tuple[Tensor, Tensor]:
    """Backward of ``silu(gate) * up * weight``: gradients (S, F) and (S,). Overwrites ``grad_SI``."""
    gate_SI, up_SI = gate_up_SF.chunk(2, dim=-1)
    grad_gate_up_SF = torch.empty_like(gate_up_SF)
    grad_gate_SI, grad_up_SI = grad_gate_up_SF.chunk(2, dim=-1)
    unweighed_SI = act_SI * grad_SI
    torch.mul(unweighed_SI, weight_S1, out=grad_up_SI)
    grad_weight_S = unweighed_SI.mul_(up_SI).sum(-1)
    grad_SI.mul_(weight_S1).mul_(up_SI)
    torch.ops.aten.silu_backward.grad_input(grad_SI, gate_SI, grad_input=grad_gate_SI)
    return grad_gate_up_SF, grad_weight_S


def _sum_of_pairs(y_SH: Tensor, order: Order) -> Tensor:
    """Add up the rows of each token's pairs (N, H), in one pass over them."""
    return embedding_bag(order.position_S, y_SH, order.start_N, mode="sum")


def choose(num_tokens: int, top_k: int, shape_EHI: tuple[int, ...], itemsize: int, device: str) -> Backend:
    """The backend for so many tokens. From shapes alone: equal inputs give equal results on every run.

    Measured on a CPU (docs/benchmarks.md). Elsewhere, not measured, as transformers does: grouped_mm, but
    batched_mm for the few tokens of decoding, here as long as it copies no more weights than there are.
    """
    E, H, I = shape_EHI  # noqa: E741
    if device != "cpu":
        return "batched_mm" if num_tokens * top_k <= E else "grouped_mm"
    aligned = all(width * itemsize % _ALIGNMENT_BYTES == 0 for width in (H, I))
    return "sorted" if aligned else "eager"


def auto_experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts function "auto": (N, H), indices (N, K) and weights (N, K) to (N, H)."""
    down_EHI = self.down_proj
    num_tokens, top_k = top_k_index.shape
    device = hidden_states.device.type
    backend = choose(num_tokens, top_k, down_EHI.shape, down_EHI.element_size(), device)
    if backend == "sorted" and not _is_sortable(self):
        backend = "grouped_mm"
    functions: dict[Backend, Callable[..., Tensor]] = {
        "sorted": sorted_experts_forward,
        "grouped_mm": grouped_mm_experts_forward,
        "batched_mm": batched_mm_experts_forward,
    }
    # The class's own forward is what transformers' decorator has wrapped.
    function = type(self).forward.__wrapped__ if backend == "eager" else functions[backend]
    return function(self, hidden_states, top_k_index, top_k_weights)


def _is_sortable(experts: Any) -> bool:
    """Whether ``SortedExperts`` computes them: the interface is global, so any model can ask for "auto"."""
    plain = experts.has_gate and experts.is_concatenated and not (experts.has_bias or experts.is_transposed)
    return plain and not experts._is_expert_parallel and experts.config.hidden_act == "silu"


def sorted_experts_forward(self: Any, x_NH: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """``SortedExperts`` as an experts function. (N, H)."""
    dtype = self.down_proj.dtype  # under autocast the hidden states may have another one
    y_NH: Tensor = SortedExperts.apply(
        x_NH.to(dtype), weight_NK.to(dtype), self.gate_up_proj, self.down_proj, index_NK
    )
    return y_NH.to(x_NH.dtype)


def register_backends() -> None:
    """Make transformers know "auto"; safe to call again."""
    ExpertsInterface.register("auto", auto_experts_forward)
