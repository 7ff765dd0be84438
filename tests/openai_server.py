"""A real local server with the OpenAI chat completions interface, which fails as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal[
    "ok", "429", "429-date", "500", "503", "slow", "not-json", "truncated", "400", "401", "404", "hangup"
]
KEY = "sk-test-only"
SLOW_S = 0.4


def material_of(body: dict[str, Any]) -> dict[str, Any]:
    """What a request of the generator is about: example, report, parts, number."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


def honest(body: dict[str, Any]) -> str:
    """Items as asked for: closed ones word for word from the report, open ones about it."""
    asked = material_of(body)
    if "question" in asked:  # a judge's request
        return json.dumps({"accept": True, "reason": None, "detail": ""})
    first = asked["report"].splitlines()[-1]
    parts = list(asked["parts"])
    items = [
        {"part": part, "question": f"What about {part} here, {body['seed']}?", "answer": first}
        for part in parts
    ]
    return "```json\n" + json.dumps({"items": items}, ensure_ascii=False) + "\n```"


@dataclass
class OpenAIServer:
    """What the server is to answer next, and what it was asked."""

    answer: Callable[[dict[str, Any]], str] = honest
    faults: list[Fault] = field(default_factory=list)  # of the next requests; then all is well
    always: Fault = "ok"
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, body: dict[str, Any]) -> Fault:
        """Record a request; what to do with it."""
        with self.lock:
            self.requests.append(body)
            self.times.append(time.monotonic())
            return self.faults.pop(0) if self.faults else self.always


@contextlib.contextmanager
def openai_server(**settings: Any) -> Iterator[OpenAIServer]:
    """A server on a free port; ``url`` is what a member of the pool takes."""
    state = OpenAIServer(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: OpenAIServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.state.lock:
            self.state.at_once += 1
            self.state.most_at_once = max(self.state.most_at_once, self.state.at_once)
        try:
            self._answer(body, self.state.next_fault(body))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up
        finally:
            with self.state.lock:
                self.state.at_once -= 1

    def _answer(self, body: dict[str, Any], fault: Fault) -> None:
        known = self.headers.get("Authorization") == f"Bearer {KEY}"
        if self.path != "/v1/chat/completions" or fault == "404":
            self._send(404, b"{}")
        elif not known or fault == "401":
            self._send(401, b'{"error": {"message": "wrong key"}}')
        elif fault == "429":
            self._send(429, b"{}", {"Retry-After": "0.2"})
        elif fault == "429-date":
            self._send(429, b"{}", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        elif fault in ("500", "503", "400"):
            self._send(int(fault), b"{}")
        elif fault == "not-json":
            self._send(200, b"<html>busy</html>")
        elif fault == "hangup":
            self.close_connection = True
        else:
            if fault == "slow":
                time.sleep(SLOW_S)
            self._complete(body, cut=fault == "truncated")

    def _complete(self, body: dict[str, Any], *, cut: bool) -> None:
        message = {"role": "assistant", "content": self.state.answer(body)}
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice], "usage": usage, "model": body["model"]}).encode()
        if cut:  # fewer bytes than were promised
            self._send(200, content[: len(content) // 2], {"Content-Length": str(len(content))})
            self.close_connection = True
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
