"""What a training run tells: one row per step, and progress to the process that started it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from echoray.types import Progress

_POLL_S = 0.5


def metrics_row(
    step: int, loss: float, balance_loss: float, learning_rate: float, tokens_per_s: float, load_LE: Tensor
) -> dict[str, Any]:
    """A row of metrics.jsonl; ``expert_load`` is each expert's share of the dispatched tokens per layer."""
    load = load_LE / load_LE.sum(-1, keepdim=True).clamp(min=1) if load_LE.numel() else load_LE
    return {
        "step": step,
        "loss": loss,
        "balance_loss": balance_loss,
        "learning_rate": learning_rate,
        "tokens_per_s": round(tokens_per_s, 1),
        "expert_load": [[round(value, 4) for value in layer] for layer in load.tolist()],
    }


class StepCounter:
    """A Ray actor that holds how far rank 0 is; reading it never blocks training."""

    def __init__(self) -> None:
        self._done, self._total = 0, None

    def update(self, done: int, total: int) -> None:
        """Set the last finished step and the number of steps."""
        self._done, self._total = done, total  # type: ignore[assignment]

    def read(self) -> tuple[int, int | None]:
        """The last finished step and the number of steps, None before the first update."""
        return self._done, self._total


@contextmanager
def reported_progress(step: str, progress: Progress) -> Iterator[Any]:
    """Yield a StepCounter actor handle for the workers; its state goes to ``progress`` while the block runs."""
    import ray

    counter = ray.remote(num_cpus=0)(StepCounter).remote()
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_S):
            done, total = ray.get(counter.read.remote())
            if total is not None:
                progress(step, done, total)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        stop.set()
        thread.join(timeout=5)
        ray.kill(counter)
