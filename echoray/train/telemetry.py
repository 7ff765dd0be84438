"""What a training run tells: one row per step, and progress or a failure to the process that started it.

Shape legend: L layers with experts, E experts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from echoray.errors import EchoRayError
from echoray.types import Progress

if TYPE_CHECKING:
    from echoray.train.loop import StepResult

_POLL_S = 0.2
_ANSWER_S = 5.0


def metrics_row(
    step: int, result: StepResult, *, learning_rate: float, tokens_per_s: float
) -> dict[str, Any]:
    """A row of metrics.jsonl; ``expert_load`` is each expert's share of a layer's tokens (L, E)."""
    load_LE = result.expert_load_LE
    share_LE = load_LE / load_LE.sum(-1, keepdim=True).clamp(min=1)
    return {
        "step": step,
        "loss": result.loss,
        "balance_loss": result.balance_loss,
        "grad_norm": result.grad_norm,
        "learning_rate": learning_rate,
        "tokens_per_s": round(tokens_per_s, 1),
        "expert_load": [[round(value, 4) for value in layer] for layer in share_LE.tolist()],
    }


class StageMonitor:
    """A Ray actor between the workers and the driver; telling it something never blocks training."""

    def __init__(self) -> None:
        self._done = 0
        self._total: int | None = None
        self._failure: EchoRayError | None = None

    def update(self, done: int, total: int) -> None:
        """Set the last finished step and the number of steps."""
        self._done, self._total = done, total

    def position(self) -> tuple[int, int | None]:
        """The last finished step and the number of steps, None before the first update."""
        return self._done, self._total

    def fail(self, error: EchoRayError) -> None:
        """Record an error that a restart cannot cure; the first one stands."""
        self._failure = self._failure or error

    def failure(self) -> EchoRayError | None:
        """The recorded error."""
        return self._failure


@contextmanager
def monitored(label: str, progress: Progress) -> Iterator[Any]:
    """Yield a StageMonitor actor handle; its position goes to ``progress`` whenever it changes."""
    import ray

    monitor = ray.remote(num_cpus=0)(StageMonitor).remote()
    stop = threading.Event()
    thread = threading.Thread(target=_relay, args=(monitor, label, progress, stop), daemon=True)
    thread.start()
    try:
        yield monitor
    finally:
        stop.set()
        thread.join(timeout=5)
        ray.kill(monitor)


def _relay(monitor: Any, label: str, progress: Progress, stop: threading.Event) -> None:
    import ray

    last: tuple[int, int | None] = (0, None)
    ending = False
    while not ending:
        ending = stop.wait(_POLL_S)  # one more look after the end, so that the last step is told
        try:
            position = ray.get(monitor.position.remote(), timeout=_ANSWER_S)
        except ray.exceptions.RayError:
            continue
        if position != last:
            last = position
            progress(label, *position)
