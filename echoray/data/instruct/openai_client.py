"""One endpoint with the OpenAI chat completions interface: limits, retries, and what its errors mean.

Specification: https://platform.openai.com/docs/api-reference/chat (the fields that every server of the kind
has); Retry-After: RFC 9110, section 10.2.3.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echoray.config import secret
from echoray.config.instruct import OpenAIMember
from echoray.data.instruct.prescreen import Message
from echoray.errors import ConfigError, EchoRayError

if TYPE_CHECKING:
    import httpx

_BACKOFF_S, _LONGEST_WAIT_S = 0.5, 60.0
EXHAUSTED = "unanswered_"  # begins the reasons of requests that got no answer in all attempts
_REPEATED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_HINTS = {
    401: "check the key that key_ref names",
    403: "check what the key may use",
    404: "check url and model; url ends before /chat/completions",
}


class ServiceError(EchoRayError):
    """An endpoint of the pool is not to be had; what it answered so far is kept."""


@dataclass(frozen=True)
class Completion:
    """What one request gave."""

    text: str
    tokens_in: int
    tokens_out: int


class RefusedError(Exception):
    """The service will not answer this one request (a status of 4xx), or did not in all attempts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RateLimiter:
    """Spaces requests evenly, and holds all of them back where the service asks for it."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Return when the next request may be sent."""
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._gap_s
        await asyncio.sleep(begin - now)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


class OpenAIClient:
    """Sends requests to one member; to be used as an async context manager, within one event loop.

    Messages of errors name the member and a status, never what was sent or came back.
    """

    def __init__(self, member: OpenAIMember) -> None:
        self.member = member
        self._limiter = RateLimiter(member.requests_per_minute)
        self._slots = asyncio.Semaphore(member.concurrency)

    async def __aenter__(self) -> OpenAIClient:
        import httpx

        key = secret(self.member.key_ref) if self.member.key_ref else None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{self.member.key_ref}: not an API key", hint="write the key there as it is")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.member.concurrency)
        self._http = httpx.AsyncClient(headers=headers, limits=limits, timeout=None, trust_env=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def complete(
        self,
        messages: Sequence[Message],
        seed: int,
        *,
        images: Sequence[bytes] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """The answer to ``messages``; PNG ``images`` go with the last one.

        Raises RefusedError for a request that gets no answer, ServiceError where the endpoint answers none.
        """
        body = self._body(messages, seed, images, schema)
        reason = ""
        async with self._slots:
            for attempt in range(self.member.attempts):
                if attempt:
                    await asyncio.sleep(_backoff_s(attempt, seed))
                await self._limiter.turn()
                result = await self._try(body)
                if isinstance(result, Completion):
                    return result
                reason = result
        raise RefusedError(f"{EXHAUSTED}{reason}")

    async def _try(self, body: Mapping[str, Any]) -> Completion | str:
        """One attempt: a completion, or why to try again."""
        import httpx

        try:
            async with asyncio.timeout(self.member.timeout_s):
                response = await self._http.post(f"{self.member.url}/chat/completions", json=body)
        except TimeoutError:
            return "timeout"
        except httpx.TransportError:
            return "connection"
        if response.status_code in _REPEATED:
            self._limiter.hold(_retry_after_s(response))
            return f"http_{response.status_code}"
        if response.status_code in _HINTS:
            raise ServiceError(
                f"instruct member {self.member.name}: HTTP {response.status_code}",
                hint=_HINTS[response.status_code],
            )
        if not response.is_success:
            raise RefusedError(f"http_{response.status_code}")
        return _completion(response) or "malformed_response"

    def _body(
        self,
        messages: Sequence[Message],
        seed: int,
        images: Sequence[bytes],
        schema: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.member.model,
            "messages": with_images(messages, images),
            "temperature": self.member.temperature,
            "max_tokens": self.member.max_tokens,
            "seed": seed,
        }
        if schema is not None and self.member.structured:
            named = {"name": "answer", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body


def with_images(messages: Sequence[Message], images: Sequence[bytes]) -> list[dict[str, Any]]:
    """The messages with PNG pictures, as data URLs, before the text of the last one."""
    if not images:
        return [dict(one) for one in messages]
    urls = [f"data:image/png;base64,{base64.b64encode(one).decode()}" for one in images]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    *before, last = messages
    return [*map(dict, before), {**last, "content": [*parts, {"type": "text", "text": last["content"]}]}]


def _completion(response: httpx.Response) -> Completion | None:
    """The answer in a response; None where it is cut short or is none."""
    try:
        value = response.json()
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        return Completion(str(text or ""), int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _retry_after_s(response: httpx.Response) -> float:
    """How long the service asks to wait, at most a minute; 0 where it does not say."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT_S) if seconds == seconds else 0.0


def _backoff_s(attempt: int, seed: int) -> float:
    """Twice as long each time; spread, so that what failed together does not return together."""
    longest = min(_BACKOFF_S * 2**attempt, _LONGEST_WAIT_S)
    return longest * (0.5 + 0.5 * random.Random(f"{seed} {attempt}").random())
