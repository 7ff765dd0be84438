"""One optimizer step of either stage, on one screen (She et al., EchoVLM, eq. 5-9).

Shape legend: B rows, T tokens, H hidden size, V vocabulary, N tokens, L layers with experts,
E experts, P patches, D values per patch, I images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from echoray.data.batch import IGNORE, Batch
from echoray.errors import TrainingError
from echoray.model.modeling import EchoVLMForConditionalGeneration, moe_layer_indices
from echoray.model.router import balancing_loss, dispatch_counts, record_router_logits


@dataclass(frozen=True)
class StepTotals:
    """What every rank knows of the global batch before computing: its learned and its real tokens."""

    num_targets: int
    num_tokens: int


@dataclass(frozen=True)
class StepResult:
    """Global losses of a step, the gradient's norm before clipping, and each expert's tokens (L, E)."""

    loss: float
    balance_loss: float
    grad_norm: float
    expert_load_LE: Tensor


class TrainingModel(nn.Module):
    """The forward pass of training: logits only where a token is learned, router logits beside the loss."""

    def __init__(self, core: EchoVLMForConditionalGeneration) -> None:
        super().__init__()
        self.core = core

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Summed cross-entropy over the learned tokens (eq. 5), and each layer's router logits (N, E)."""
        has_images = len(batch["patches_PD"]) > 0
        with record_router_logits() as router_logits:
            hidden_BTH = self.core.model(
                input_ids=batch["input_ids_BT"],
                position_ids=batch["position_ids_4BT"],
                pixel_values=batch["patches_PD"] if has_images else None,
                image_grid_thw=batch["grid_thw_I3"] if has_images else None,
                use_cache=False,
            ).last_hidden_state
        learned_BT = batch["labels_BT"] != IGNORE
        # The vocabulary's projection is the largest product of the step; prompts and images need none of it.
        logits_NV = self.core.lm_head(hidden_BTH[learned_BT]).float()
        target_N = batch["labels_BT"][learned_BT]
        return nn.functional.cross_entropy(logits_NV, target_N, reduction="sum"), router_logits


def train_step(
    engine: Any,
    micro_batches: Sequence[dict[str, Tensor]],
    totals: StepTotals,
    *,
    gamma: float,
    world_size: int,
) -> StepResult:
    """Forward, backward and update for one global batch.

    DeepSpeed averages gradients over ranks and micro-batches, hence the scale: what is minimised is the sum
    over the global batch divided by its learned tokens, plus gamma times the balancing loss of its tokens,
    whatever the number of workers and the accumulation. TrainingError, before any weight changes, when the
    loss is not finite.
    """
    text = engine.module.core.config.text_config
    scale = world_size * len(micro_batches)
    counts_LE = _counts_ahead(engine, micro_batches, text) if len(micro_batches) > 1 else None
    losses_2 = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for index, batch in enumerate(micro_batches):
        summed, router_logits = engine(batch)
        loss, balance = summed / totals.num_targets, summed.new_zeros(())
        if router_logits:
            mask_N = batch["mask_BT"].reshape(-1)
            if counts_LE is None:
                counts_LE = _all_reduced(dispatch_counts(router_logits, text.num_experts_per_tok, mask_N))
            balance = _balance(text, router_logits, mask_N, counts_LE, totals)
        engine.backward((loss + gamma * balance) * scale)
        losses_2 += torch.stack([loss.detach(), balance.detach()])
        if index + 1 == len(micro_batches):
            loss_value, balance_value = _all_reduced(losses_2).tolist()
            _refuse_non_finite(engine, loss_value + balance_value)
        engine.step()
    load_LE = torch.zeros(0, 0) if counts_LE is None else counts_LE.cpu()
    return StepResult(loss_value, balance_value, float(engine.get_global_grad_norm()), load_LE)


def _balance(
    text: Any, router_logits: Sequence[Tensor], mask_N: Tensor, counts_LE: Tensor, totals: StepTotals
) -> Tensor:
    return balancing_loss(
        router_logits,
        mask_N,
        global_counts_LE=counts_LE,
        global_num_tokens=totals.num_tokens,
        form=text.aux_loss_form,
    )


@torch.no_grad()
def _counts_ahead(engine: Any, micro_batches: Sequence[dict[str, Tensor]], text: Any) -> Tensor | None:
    """Dispatch counts of the whole step before its first backward pass, with the real pass's dropout."""
    if not moe_layer_indices(text):
        return None
    counts = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for batch in micro_batches:
            _, router_logits = engine.module(batch)
            mask_N = batch["mask_BT"].reshape(-1)
            counts.append(dispatch_counts(router_logits, text.num_experts_per_tok, mask_N))
    return _all_reduced(torch.stack(counts).sum(0))


def _all_reduced(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


def _refuse_non_finite(engine: Any, loss: float) -> None:
    if math.isfinite(loss):
        return
    broken = [name for name, one in engine.module.core.named_parameters() if not one.isfinite().all()]
    where = (
        f"{len(broken)} weights are not finite, first {broken[0]}"
        if broken
        else "all weights are finite, so the forward pass overflowed"
    )
    raise TrainingError(
        f"the loss is {loss} at optimizer step {engine.global_steps + 1}, "
        f"learning rate {engine.get_lr()[0]:.3g}; {where}",
        hint="lower the stage's learning_rate, or raise its warmup_ratio",
    )


def to_tensors(batch: Batch, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Move a packed batch to ``device``; patches in the model's dtype."""
    tensors = {name: torch.from_numpy(value).to(device) for name, value in vars(batch).items()}
    tensors["patches_PD"] = tensors["patches_PD"].to(dtype)
    return tensors
