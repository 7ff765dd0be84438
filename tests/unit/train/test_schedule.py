"""The learning rate of every update: warm-up over ceil(ratio * steps), then a cosine to 0 (Table 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from echoray.config import RunConfig
from echoray.train.zero import rate_share

Steps = Callable[..., tuple[Any, list[dict[str, Any]]]]


def shares(warmup_steps: int, num_steps: int) -> list[float]:
    return [rate_share(step, warmup_steps=warmup_steps, num_steps=num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 10])
def test_no_update_is_wasted_the_peak_is_reached_and_the_cosine_ends_small(warmup_steps: int) -> None:
    rates = shares(warmup_steps, 40)
    assert min(rates) > 0 and max(rates) == 1
    assert rates[:warmup_steps] == [(step + 1) / warmup_steps for step in range(warmup_steps)]
    assert all(later < earlier for earlier, later in pairwise(rates[warmup_steps:]))
    middle = rate_share(warmup_steps + (40 - warmup_steps) // 2, warmup_steps=warmup_steps, num_steps=40)
    assert middle == pytest.approx(0.5, abs=0.06)
    assert rates[-1] == pytest.approx((math.pi / 2 / (40 - warmup_steps)) ** 2, rel=0.01)
    assert rate_share(40, warmup_steps=warmup_steps, num_steps=40) == pytest.approx(0)


def test_after_the_warm_up_it_is_the_cosine_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 5, 30)
    theirs = []
    for _ in range(30):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = shares(5, 30)
    assert ours[5:] == pytest.approx(theirs[5:])
    # Theirs begins with an update at a rate of 0; ours is one step ahead.
    assert theirs[0] == 0 and ours[:5] == pytest.approx(theirs[1:6])


def test_a_run_that_is_all_warm_up_or_a_single_step_has_a_rate() -> None:
    assert shares(2, 2) == [0.5, 1.0]
    assert shares(1, 1) == shares(0, 1) == [1.0]


def test_the_first_update_of_training_moves_the_weights_at_the_warm_up_rate(
    steps_of: Steps, tiny_run: RunConfig
) -> None:
    warm = tiny_run.merged({"train": {"align": {"warmup_ratio": 0.3}}})
    before = {
        name: one.detach().clone() for name, one in steps_of(warm, num=0)[0].module.core.named_parameters()
    }
    engine, rows = steps_of(warm, num=1, planned=8)
    assert rows[0]["learning_rate"] == pytest.approx(tiny_run.train.align.learning_rate / 3)
    moved = [
        (value - before[name]).abs().max().item()
        for name, value in engine.module.core.named_parameters()
        if value.requires_grad
    ]
    # AdamW's first update is the rate itself wherever there is a gradient.
    assert max(moved) == pytest.approx(rows[0]["learning_rate"], rel=0.05)
    _, rows = steps_of(warm, num=8, planned=8)
    expected = [tiny_run.train.align.learning_rate * one for one in shares(3, 8)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
