"""A pool member's endpoint over real HTTP: limits, retries, and what each kind of failure leads to."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import pytest

from echoray.config.instruct import OpenAIMember
from echoray.data.instruct import openai_client
from echoray.data.instruct.openai_client import Completion, OpenAIClient, RefusedError, ServiceError
from echoray.errors import ConfigError
from tests.openai_server import KEY, SLOW_S, OpenAIServer, openai_server

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "Liver of the patient. {}"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "_BACKOFF_S", 0.01)
    monkeypatch.setenv("POOL_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def member(server: OpenAIServer, **changes: Any) -> OpenAIMember:
    known = {"name": "pool-a", "model": "any", "url": server.url, "key_ref": "env:POOL_KEY", "attempts": 3}
    return OpenAIMember.model_validate({**known, **changes})


def completed(member: OpenAIMember, times: int = 1, **options: Any) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        async with OpenAIClient(member) as client:
            made = (client.complete(MESSAGES, seed, **options) for seed in range(times))
            return list(await asyncio.gather(*made))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("fault", ["429", "429-date", "500", "503", "not-json", "truncated", "hangup"])
def test_a_request_that_failed_is_sent_again(fault: str) -> None:
    with openai_server(answer=lambda body: "fine", faults=[fault, fault]) as server:
        assert completed(member(server)) == [Completion("fine", 100, 20)]
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_a_request_out_of_time_is_sent_again() -> None:
    with openai_server(answer=lambda body: "fine", faults=["slow"]) as server:
        assert completed(member(server, timeout_s=SLOW_S / 4))[0].text == "fine"
    assert len(server.requests) == 2


def test_after_all_attempts_the_request_is_refused_with_what_it_failed_of() -> None:
    with openai_server(always="503") as server, pytest.raises(RefusedError) as refused:
        completed(member(server))
    assert refused.value.reason == "unanswered_http_503"
    assert len(server.requests) == 3


def test_a_request_at_fault_is_refused_at_once() -> None:
    with openai_server(always="400") as server, pytest.raises(RefusedError) as refused:
        completed(member(server))
    assert refused.value.reason == "http_400"
    assert len(server.requests) == 1


@pytest.mark.parametrize(("fault", "hint"), [("401", "key_ref"), ("404", "url and model")])
def test_a_wrong_key_or_address_ends_the_run_and_says_what_to_look_at(fault: str, hint: str) -> None:
    with openai_server(always=fault) as server, pytest.raises(ServiceError, match="pool-a") as stopped:
        completed(member(server))
    assert hint in stopped.value.hint
    assert len(server.requests) == 1
    assert KEY not in str(stopped.value)


def test_a_missing_key_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POOL_KEY")
    with openai_server() as server, pytest.raises(ConfigError, match="POOL_KEY"):
        completed(member(server))
    assert not server.requests


def test_retry_after_holds_all_requests_back() -> None:
    with openai_server(answer=lambda body: "fine", faults=["429"]) as server:
        completed(member(server, concurrency=1), times=2)
    assert server.times[1] - server.times[0] >= 0.19


def test_no_more_requests_are_under_way_than_allowed_and_they_are_spaced() -> None:
    with openai_server(answer=lambda body: "fine", always="slow") as server:
        completed(member(server, concurrency=2, requests_per_minute=600), times=4)
    assert server.most_at_once == 2
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert min(gaps) >= 0.08  # 0.1 s apart when they were sent


def test_pictures_and_the_schema_are_sent_as_the_interface_wants_them() -> None:
    with openai_server(answer=lambda body: "fine") as server:
        completed(member(server), images=[b"png"], schema={"type": "object"})
        completed(member(server, structured=False), schema={"type": "object"})
    picture, text = server.requests[0]["messages"][1]["content"]
    assert picture["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(b'png').decode()}"
    assert text == {"type": "text", "text": MESSAGES[1]["content"]}
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "response_format" not in server.requests[1]


def test_neither_key_nor_texts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with openai_server(answer=lambda body: "fine", faults=["500"]) as server:
        completed(member(server))
    assert KEY not in caplog.text
    assert "patient" not in caplog.text
