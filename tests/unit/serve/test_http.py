"""What a client sees when the engine is slow, broken or stopping; the engines here exist to fail."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from echoray.config import ServeConfig
from echoray.errors import ServingError
from echoray.model.base import WEIGHTS
from echoray.serve.auth import ApiKeys, new_api_key
from echoray.serve.engine import Delta, Prompt, Sampling
from echoray.serve.exported import ExportedModel
from echoray.serve.http import create_http_app
from echoray.serve.prompts import Prompter
from echoray.serve.service import ChatService

KEY, DIGEST = new_api_key()
SECRET = "SECRETPROMPT"
EXPORTED = ExportedModel(WEIGHTS, 56, "dynamic", {}, "1", 500, "EchoVLMForConditionalGeneration")
LIMITS = ServeConfig(max_ongoing_requests=1, request_timeout_s=0.3)


class FailingEngine:
    """Says two words, then fails as told; notes whether its iterator was closed."""

    def __init__(self, failure: Exception | None, *, healthy: bool = True) -> None:
        self.failure = failure
        self.healthy = healthy
        self.closed = 0

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def check_health(self) -> None:
        if not self.healthy:
            raise ServingError("dead", hint="restart")

    async def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncIterator[Delta]:
        try:
            yield Delta("two ", 1)
            yield Delta("words", 2)
            if self.failure is not None:
                raise self.failure
            await asyncio.sleep(3600)
        finally:
            self.closed += 1


def service_of(engine: FailingEngine) -> ChatService:
    return ChatService(engine, Prompter(EXPORTED, LIMITS), ApiKeys([DIGEST]), LIMITS, EXPORTED, "v1")


async def post(service: ChatService, *, stream: bool = False) -> httpx.Response:
    app = create_http_app(service, logging.getLogger("test.requests"))
    body = {"model": "echovlm", "messages": [{"role": "user", "content": SECRET}], "stream": stream}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post(
            "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
        )


CASES = [
    (None, 504, "timeout"),
    (ServingError("engine lost", hint="try again"), 503, "engine_error"),
    (RuntimeError(SECRET), 500, "internal_error"),
]


@pytest.mark.parametrize(("failure", "status", "code"), CASES)
def test_a_failed_answer_is_an_openai_error_and_gives_its_place_back(
    failure: Exception | None, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = FailingEngine(failure)
    service = service_of(engine)
    for _ in range(2):
        answer = asyncio.run(post(service))
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (engine.closed, service.num_running) == (2, 0)
    assert SECRET not in caplog.text
    assert SECRET not in answer.text
    lines = [json.loads(one.message) for one in caplog.records if one.name == "test.requests"]
    assert [line["status"] for line in lines] == [status, status]


@pytest.mark.parametrize(("failure", "status", "code"), CASES[:2])
def test_a_stream_that_fails_says_so_in_an_event_before_it_ends(
    failure: Exception | None, status: int, code: str
) -> None:
    engine = FailingEngine(failure)
    service = service_of(engine)
    answer = asyncio.run(post(service, stream=True))
    events: list[Any] = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    parsed = [json.loads(event) for event in events[:-1]]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in parsed[:-1]) == "two words"
    assert parsed[-1]["error"]["code"] == code
    assert (engine.closed, service.num_running) == (1, 0)


def test_probes_tell_alive_from_ready() -> None:
    async def probe(service: ChatService) -> list[int]:
        app = create_http_app(service, logging.getLogger("test.requests"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/nowhere")]

    service = service_of(FailingEngine(None))
    assert asyncio.run(probe(service)) == [200, 200, 404]
    service.draining = True
    assert asyncio.run(probe(service)) == [200, 503, 404]
    stopping = asyncio.run(post(service))
    assert (stopping.status_code, stopping.json()["error"]["code"]) == (503, "not_ready")
    assert "Retry-After" in stopping.headers
    assert asyncio.run(probe(service_of(FailingEngine(None, healthy=False)))) == [200, 503, 404]
