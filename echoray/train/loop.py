"""One optimizer step of either stage, on one screen (She et al., EchoVLM, eq. 5-9).

Shape legend: B rows, T tokens, H hidden size, V vocabulary, N learned tokens, L layers with experts, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Global losses of a step and how many tokens each expert got (L, E)."""

    loss: float
    balance_loss: float
    expert_load_LE: Tensor


class TrainingModel(nn.Module):
    """The forward pass of training: logits only where a token is learned, router logits beside the loss."""

    def __init__(self, core: EchoVLMForConditionalGeneration) -> None:
        super().__init__()
        self.core = core

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Summed cross-entropy over the batch's learned tokens (eq. 5), and each layer's router logits."""
        labels_BT = batch["labels_BT"]
        with record_router_logits() as router_logits:
            hidden_BTH = self.core.model(
                input_ids=batch["input_ids_BT"],
                position_ids=batch["position_ids_4BT"],
                pixel_values=batch["patches_PD"] if len(batch["patches_PD"]) else None,
                image_grid_thw=batch["grid_thw_I3"] if len(batch["patches_PD"]) else None,
                use_cache=False,
            ).last_hidden_state
        learned_BT = labels_BT != IGNORE
        logits_NV = self.core.lm_head(hidden_BTH[learned_BT]).float()
        return F.cross_entropy(logits_NV, labels_BT[learned_BT], reduction="sum"), router_logits


def train_step(
    engine: Any, micro_batches: Sequence[dict[str, Tensor]], totals: StepTotals, *, gamma: float, world_size: int
) -> StepResult:
    """Forward, backward and update for one global batch.

    DeepSpeed averages gradients over ranks and micro-batches, hence the scale: what is minimised is the sum
    over the global batch divided by its learned tokens, plus gamma times the balancing loss of its tokens,
    whatever the number of workers and the accumulation. TrainingError when the loss is not finite.
    """
    text = engine.module.core.config.text_config
    routed = bool(moe_layer_indices(text))
    scale = world_size * len(micro_batches)
    counts_LE = _global_counts(engine, micro_batches, text) if routed and len(micro_batches) > 1 else None
    losses = torch.zeros(2, dtype=torch.float64)
    for batch in micro_batches:
        summed, logits = engine(batch)
        loss = summed / totals.num_targets
        balance = torch.zeros(())
        if routed:
            mask_N = batch["mask_BT"].reshape(-1)
            if counts_LE is None:
                counts_LE = _all_reduced(dispatch_counts(logits, text.num_experts_per_tok, mask_N))
            balance = balancing_loss(
                logits,
                mask_N,
                global_counts_LE=counts_LE,
                global_num_tokens=totals.num_tokens,
                form=text.aux_loss_form,
            )
        engine.backward((loss + gamma * balance) * scale)
        engine.step()
        losses += torch.stack([loss.detach(), balance.detach()]).double().cpu()
    loss_value, balance_value = _all_reduced(losses).tolist()
    if not torch.isfinite(torch.tensor(loss_value)):
        raise TrainingError(
            f"the loss is {loss_value} at optimizer step {engine.global_steps}",
            hint="lower the learning rate, or resume from the checkpoint before",
        )
    return StepResult(loss_value, balance_value, torch.zeros(0) if counts_LE is None else counts_LE.cpu())


@torch.no_grad()
def _global_counts(engine: Any, micro_batches: Sequence[dict[str, Tensor]], text: Any) -> Tensor:
    """Dispatch counts of the whole step before its first backward pass, with the same dropout as the real pass."""
    total: Tensor | None = None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for batch in micro_batches:
            _, logits = engine.module(batch)
            counts_LE = dispatch_counts(logits, text.num_experts_per_tok, batch["mask_BT"].reshape(-1))
            total = counts_LE if total is None else total + counts_LE
    assert total is not None
    return _all_reduced(total)


def _all_reduced(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


def to_tensors(batch: Batch, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Move a packed batch to ``device``; patches in the model's dtype."""
    tensors = {name: torch.from_numpy(value).to(device) for name, value in vars(batch).items()}
    tensors["patches_PD"] = tensors["patches_PD"].to(dtype)
    return tensors
