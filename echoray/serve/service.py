"""Admission, rendering and decoding of one replica, independent of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echoray.config import ServeConfig
from echoray.errors import EchoRayError
from echoray.serve.auth import ApiKeys
from echoray.serve.engine import Delta, Engine, Prompt, Sampling
from echoray.serve.exported import ExportedModel
from echoray.serve.protocol import ChatRequest, RequestError

if TYPE_CHECKING:
    from echoray.serve.prompts import Prompter

_RETRY_AFTER_S = 2


@dataclass
class ChatService:
    """What a replica serves with; ``num_running`` is its admission counter."""

    engine: Engine
    prompter: Prompter
    keys: ApiKeys
    limits: ServeConfig
    exported: ExportedModel
    model_version: str
    num_running: int = 0
    draining: bool = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of ``max_ongoing_requests``; RequestError 503 while stopping, 429 when all are taken."""
        if self.draining:
            raise RequestError(
                "the endpoint is stopping",
                hint="try again",
                status=503,
                code="not_ready",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self.num_running >= self.limits.max_ongoing_requests:
            raise RequestError(
                f"all {self.limits.max_ongoing_requests} places are taken",
                hint="try again after the time in Retry-After",
                status=429,
                code="over_capacity",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1

    async def prepare(self, request: ChatRequest) -> tuple[Prompt, Sampling]:
        """Render off the event loop; RequestError 404 for another model, 400 or 413 outside the limits."""
        if request.model != self.limits.model_name:
            raise RequestError(
                "no model of that name is served here",
                hint=f"use {self.limits.model_name!r}",
                status=404,
                code="model_not_found",
                param="model",
            )
        return await asyncio.to_thread(self.prompter.render, request)

    async def answer(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncIterator[Delta]:
        """Decode within ``request_timeout_s`` (RequestError 504 beyond); closing it cancels the decoding."""
        deadline = asyncio.get_running_loop().time() + self.limits.request_timeout_s
        deltas = self.engine.generate(prompt, sampling, request_id)
        try:
            while True:
                # The timeout must not span the yield, or it would cancel the consumer; asyncio.wait_for would
                # lose a cancellation that comes together with a token (Python 3.11).
                async with asyncio.timeout_at(deadline):
                    delta = await anext(deltas)
                yield delta
                if delta.finish_reason is not None:
                    return
        except TimeoutError:
            raise RequestError(
                f"not finished within {self.limits.request_timeout_s:g} s",
                hint="ask for fewer tokens",
                status=504,
                code="timeout",
            ) from None
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    async def ready(self) -> bool:
        """Whether a request sent now would be served."""
        try:
            await self.engine.check_health()
        except EchoRayError:
            return False
        return not self.draining
