"""The order of examples: resumable at every step, complete in every epoch, the same for any world size."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from echoray.data.cursor import Cursor, micro_batches, num_steps

seeds = st.integers(0, 2**32)
sizes = st.integers(1, 40)


def walk(cursor: Cursor, size: int, steps: int) -> tuple[list[list[int]], Cursor]:
    taken = []
    for _ in range(steps):
        batch, cursor = cursor.take(size)
        taken.append(batch.tolist())
    return taken, cursor


@given(seeds, sizes, sizes, st.integers(0, 12), st.integers(0, 12))
def test_stopping_after_any_step_and_going_on_changes_nothing(
    seed: int, num_examples: int, size: int, before: int, after: int
) -> None:
    whole, end = walk(Cursor(seed, num_examples), size, before + after)
    first, stopped = walk(Cursor(seed, num_examples), size, before)
    resumed = Cursor(**json.loads(json.dumps(asdict(stopped))))  # as a checkpoint keeps it
    second, resumed_end = walk(resumed, size, after)
    assert first + second == whole
    assert resumed_end == end


@given(seeds, sizes, sizes)
def test_an_epoch_takes_every_example_once_in_full_batches_and_a_rest(
    seed: int, num_examples: int, size: int
) -> None:
    cursor = Cursor(seed, num_examples)
    for epoch in range(3):
        batches = []
        while cursor.epoch == epoch:
            batch, cursor = cursor.take(size)
            batches.append(batch.tolist())
        assert sorted(index for batch in batches for index in batch) == list(range(num_examples))
        assert all(len(batch) == size for batch in batches[:-1])
        assert cursor.consumed == 0


@given(sizes, sizes, st.integers(1, 4), st.none() | st.integers(1, 30))
def test_the_planned_steps_are_those_that_the_cursor_takes(
    num_examples: int, size: int, epochs: int, max_steps: int | None
) -> None:
    cursor, taken = Cursor(1, num_examples), 0
    while cursor.epoch < epochs and taken != max_steps:
        _, cursor = cursor.take(size)
        taken += 1
    assert num_steps(num_examples, size, epochs, max_steps) == taken


@given(st.lists(st.integers(0, 99), unique=True, max_size=40), st.integers(1, 9), st.integers(1, 5))
def test_the_micro_batches_of_all_ranks_are_the_global_batch_in_even_parts(
    indices: list[int], world_size: int, accumulation: int
) -> None:
    parts = [
        part.tolist()
        for rank in range(world_size)
        for part in micro_batches(
            np.array(indices, np.int64), rank=rank, world_size=world_size, accumulation=accumulation
        )
    ]
    assert len(parts) == world_size * accumulation
    assert sorted(index for part in parts for index in part) == sorted(indices)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_the_order_is_fixed_by_seed_and_epoch() -> None:
    # Other values here mean that a stage which is resumed sees other batches than it would have seen.
    assert Cursor(7, 10).order().tolist() == [8, 0, 7, 1, 3, 6, 2, 4, 5, 9]
    assert Cursor(7, 10, epoch=1).order().tolist() == [9, 0, 8, 6, 7, 1, 3, 4, 2, 5]
    orders = [tuple(Cursor(seed, 50, epoch).order()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == len(orders)
