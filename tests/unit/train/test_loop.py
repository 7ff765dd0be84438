"""The training step's invariants, on DeepSpeed's real engine with one worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from echoray.config import RunConfig
from echoray.data.batch import load_examples, pack
from echoray.data.cursor import Cursor
from echoray.errors import ModelLoadError, TrainingError
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.storage import store_of
from echoray.train.loop import StepTotals, to_tensors, train_step
from echoray.types import ArtifactRef

Steps = Callable[..., tuple[Any, list[dict[str, Any]]]]


def changed(run: RunConfig, **train: Any) -> RunConfig:
    return run.merged({"train": train})


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [value for row in rows for value in (row["loss"], row["balance_loss"], row["grad_norm"])]


def weights(engine: Any) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in engine.module.core.named_parameters()}


@pytest.fixture(scope="module")
def batch(tiny_run: RunConfig, tiny_shards: ArtifactRef) -> dict[str, Tensor]:
    examples = load_examples(store_of(tiny_run), tiny_shards, "train")[:8]
    return to_tensors(pack(examples, 160, 5118), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("accumulation", [2, 3, 16])
def test_accumulation_changes_neither_losses_nor_gradients(
    steps_of: Steps, tiny_run: RunConfig, accumulation: int
) -> None:
    _, whole = steps_of(tiny_run)
    _, split = steps_of(changed(tiny_run, align={"accumulation": accumulation}))
    assert losses(split) == pytest.approx(losses(whole), rel=1e-4)
    assert [row["expert_load"] for row in split] == [row["expert_load"] for row in whole]


def test_packing_changes_neither_losses_nor_gradients(steps_of: Steps, tiny_run: RunConfig) -> None:
    _, long = steps_of(changed(tiny_run, pack_length_tokens=512))
    _, alone = steps_of(changed(tiny_run, pack_length_tokens=64))
    assert losses(alone) == pytest.approx(losses(long), rel=1e-4)


def test_gradient_checkpointing_changes_neither_losses_nor_gradients(
    steps_of: Steps, tiny_run: RunConfig
) -> None:
    _, plain = steps_of(tiny_run, "finetune")
    _, checkpointed = steps_of(changed(tiny_run, gradient_checkpointing=True), "finetune")
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-4)


def test_the_step_minimises_eq_9_of_the_global_batch(
    steps_of: Steps, tiny_run: RunConfig, tiny_shards: ArtifactRef
) -> None:
    """Against transformers' own loss, example by example, and eq. 8 written out over all tokens."""
    _, rows = steps_of(tiny_run, num=1)
    model = fresh_model(steps_of, tiny_run)
    examples = load_examples(store_of(tiny_run), tiny_shards, "train", tiny_run.train.align.tasks)
    first, _ = Cursor(tiny_run.seed, len(examples)).take(8)
    cross_entropy, num_targets, router_logits = torch.zeros(()), 0, []
    for one in (examples[index] for index in first):
        alone = to_tensors(pack([one], 4096, 5118), torch.device("cpu"), torch.float32)
        out = model(
            input_ids=alone["input_ids_BT"],
            attention_mask=alone["mask_BT"],
            position_ids=alone["position_ids_4BT"][1:],
            pixel_values=alone["patches_PD"],
            image_grid_thw=alone["grid_thw_I3"],
            output_router_logits=True,
        )
        target_T = torch.from_numpy(one.labels)[1:]
        cross_entropy = cross_entropy + nn.functional.cross_entropy(
            out.logits[0, :-1], target_T, reduction="sum"
        )
        num_targets += one.num_targets
        router_logits.append(torch.stack(out.router_logits))
    logits_LNE = torch.cat(router_logits, dim=1)
    chosen_LNE = nn.functional.one_hot(logits_LNE.topk(2).indices, logits_LNE.shape[-1]).sum(2).float()
    balance = (chosen_LNE.mean(1) * logits_LNE.softmax(-1).mean(1)).sum(-1).mean()
    loss = cross_entropy / num_targets
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rows[0]["balance_loss"] == pytest.approx(balance.item(), rel=1e-5)
    trained = [one for one in model.parameters() if one.requires_grad]
    gradients = torch.autograd.grad(loss + tiny_run.train.balance_weight * balance, trained)
    norm = torch.stack([one.norm() for one in gradients]).norm().item()
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def fresh_model(steps_of: Steps, run: RunConfig) -> EchoVLMForConditionalGeneration:
    engine, _ = steps_of(run, num=0)
    model: EchoVLMForConditionalGeneration = engine.module.core
    return model


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_only_the_planned_parameters_change(steps_of: Steps, tiny_run: RunConfig, stage: str) -> None:
    untouched, _ = steps_of(tiny_run, stage, num=0)
    before = weights(untouched)
    engine, _ = steps_of(tiny_run, stage, num=2)
    moved = {name for name, value in weights(engine).items() if not torch.equal(value, before[name])}
    parts = (".mlp.router.", ".mlp.experts.", ".mlp.shared_expert.", ".mlp.mix.")
    planned = {name for name in before if any(part in name for part in parts)}
    if stage == "finetune":
        planned |= {name for name in before if ".lora_" in name}
    assert moved == planned


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(
    steps_of: Steps, tiny_run: RunConfig, batch: dict[str, Tensor]
) -> None:
    engine, _ = steps_of(tiny_run, num=1)
    before = weights(engine)
    broken = {**batch, "patches_PD": torch.full_like(batch["patches_PD"], torch.inf)}
    with pytest.raises(TrainingError, match=r"loss is nan at optimizer step 2.*all weights are finite"):
        train_step(engine, [broken], StepTotals(10, 10), gamma=0.0, world_size=1)
    assert all(torch.equal(value, before[name]) for name, value in weights(engine).items())


def test_weights_that_are_not_finite_are_named(
    steps_of: Steps, tiny_run: RunConfig, batch: dict[str, Tensor]
) -> None:
    engine, _ = steps_of(tiny_run, num=0)
    engine.module.core.model.language_model.layers[1].mlp.router.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"1 weights are not finite, first .*layers\.1\.mlp\.router"):
        train_step(engine, [batch], StepTotals(10, 10), gamma=0.0, world_size=1)


def test_a_dense_model_has_nothing_to_train_in_stage_one(steps_of: Steps, tiny_run: RunConfig) -> None:
    with pytest.raises(ModelLoadError, match="no parameter matches"):
        steps_of(tiny_run.merged({"model": {"num_experts": 0}}), num=0)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_going_on_from_a_checkpoint_equals_never_stopping(
    steps_of: Steps, tiny_run: RunConfig, tmp_path: Path, stage: str
) -> None:
    run = changed(tiny_run, **{stage: {"warmup_ratio": 0.4}})
    engine, straight = steps_of(run, stage, num=6)
    steps_of(run, stage, num=2, save=tmp_path)  # in the warm-up
    resumed_engine, resumed = steps_of(run, stage, num=4, resume=tmp_path)
    timeless = [[{**row, "tokens_per_s": 0} for row in rows] for rows in (straight, resumed)]
    assert timeless[0] == timeless[1]
    expected = weights(engine)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed_engine).items())


def test_training_learns_a_small_set_by_heart(steps_of: Steps, tiny_run: RunConfig) -> None:
    _, rows = steps_of(tiny_run, num=30, planned=30)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
