"""`echoray serve ask`: what answers may be no endpoint, and what is typed may be no address."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from echoray.errors import ServingError, UsageError
from echoray.serve.client import ask


def answering(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> None:
    def post(url: str, **options: Any) -> httpx.Response:
        return httpx.Response(status, content=body)

    monkeypatch.setattr(httpx, "post", post)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>It works!</html>",
        b"",
        b"[]",
        b"null",
        b'{"status": "ok"}',
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
    ],
)
def test_an_answer_that_is_no_chat_completion_says_that_something_else_listens(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, 200, body)
    with pytest.raises(UsageError, match="not with a chat completion") as refused:
        ask("http://host:1", "key", "echovlm", "Describe it.", b"")
    assert "http://HOST:PORT" in refused.value.hint


def test_an_answer_is_its_text_and_a_refusal_carries_the_endpoints_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, 200, b'{"choices": [{"message": {"content": "A mass."}}]}')
    assert ask("http://host:1", "key", "echovlm", "Describe it.", b"") == "A mass."
    answering(monkeypatch, 400, b'{"error": {"message": "no image"}}')
    with pytest.raises(ServingError, match=r"refused the request \(400\)") as refused:
        ask("http://host:1", "key", "echovlm", "Describe it.", b"")
    assert refused.value.hint == "no image"


@pytest.mark.parametrize(
    ("url", "key"),
    [("localhost:8080", "key"), ("http://[::1", "key"), ("http://h:1", "k\u00e9y"), ("http://h:1", "k\ny")],
)
def test_what_cannot_be_an_address_or_a_key_is_refused_without_showing_the_key(url: str, key: str) -> None:
    with pytest.raises(UsageError, match=r"no address|API key") as refused:
        ask(url, key, "echovlm", "Describe it.", b"")
    assert key not in str(refused.value) or key == "key"
