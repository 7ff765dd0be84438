"""The deterministic, resumable order of examples: which ones make up which step, at any world size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cursor:
    """Where training stands: ``consumed`` examples of epoch ``epoch``'s permutation.

    The order depends on ``seed`` and ``epoch`` alone, so N steps = k steps + resume + (N - k) steps, and one
    worker sees the same global batches as many.
    """

    seed: int
    num_examples: int
    epoch: int = 0
    consumed: int = 0

    def order(self) -> NDArray[np.int64]:
        """This epoch's permutation of the example indices."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.num_examples)

    def take(self, size: int) -> tuple[NDArray[np.int64], Cursor]:
        """The next global batch (at most ``size`` indices, fewer at an epoch's end), the cursor after it."""
        batch = self.order()[self.consumed : self.consumed + size]
        end = self.consumed + len(batch)
        if end == self.num_examples:
            return batch, replace(self, epoch=self.epoch + 1, consumed=0)
        return batch, replace(self, consumed=end)


def num_steps(num_examples: int, global_batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a stage; an epoch's last, smaller batch counts as a step."""
    steps = -(-num_examples // global_batch_size) * epochs
    return steps if max_steps is None else min(steps, max_steps)


def micro_batches(
    batch: NDArray[np.int64], *, rank: int, world_size: int, accumulation: int
) -> Iterator[NDArray[np.int64]]:
    """This rank's micro-batches of a global batch; together all ranks' micro-batches are the batch."""
    parts = world_size * accumulation
    for index in range(accumulation):
        yield batch[rank * accumulation + index :: parts]
