"""What the endpoint asks of an engine, and the values that pass between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: ``text`` holds one image token per entry of ``images``.

    ``images`` are PNG pictures within the model's pixel budget; ``num_tokens`` counts them expanded.
    """

    text: str
    images: tuple[bytes, ...]
    num_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How to decode; temperature 0 is greedy and deterministic."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer; the last one has a ``finish_reason``."""

    text: str
    num_tokens: int  # generated so far, the end token included
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """A loaded model. ``generate`` may run many times at once; closing its iterator cancels the request."""

    async def start(self) -> None:
        """Load the model; return when it can answer."""

    async def stop(self) -> None:
        """Cancel what runs and free the model."""

    async def check_health(self) -> None:
        """Raise ServingError when the engine can no longer answer."""

    def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncIterator[Delta]:
        """Yield the answer's pieces as they are decoded."""
