"""A running endpoint as tests see it, and the requests that they send."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from echoray.config import ClusterConfig, ServeConfig
from echoray.serve.deploy import deploy

CLUSTER = ClusterConfig(cpus_per_worker=1, gpus_per_worker=0)


@dataclass(frozen=True)
class Server:
    """A running endpoint and a key that it accepts."""

    url: str
    key: str
    logs: Path

    @property
    def client(self) -> openai.OpenAI:
        """OpenAI's client, without its own retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        """A raw request to the chat route."""
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.url}/v1/chat/completions", content=content, headers=headers, timeout=60, **options
        )

    def log_of(self, request_id: str) -> dict[str, Any]:
        """The access-log line of a request, once it is written."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self._lines():
                if line.get("request_id") == request_id and "duration_s" in line:
                    return line
            time.sleep(0.2)
        raise AssertionError(f"no log line of {request_id}")

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in self.logs.glob("serve/replica_echoray_*.log"):
            for line in file.read_text().splitlines():
                message = json.loads(line).get("message", "")
                if message.startswith("{"):
                    yield json.loads(message)


def start(config: ServeConfig, model_dir: Path, key: str) -> Server:
    """Deploy on the session's Ray instance."""
    import ray

    url = deploy(config, CLUSTER, model_dir=model_dir)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    return Server(url, key, session / "logs")


def png(height_px: int = 80, kind: str = "PNG", *, width_px: int | None = None) -> bytes:
    size = (height_px, width_px or height_px, 3)
    pixels = np.random.default_rng(1).integers(40, 256, size, dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def user(text: str, *urls: str) -> list[dict[str, Any]]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def chat(text: str = "Describe it.", *urls: str, **options: Any) -> dict[str, Any]:
    return {"model": "echovlm", "messages": user(text, *urls), "max_tokens": 12, **options}


def leave_a_stream(server: Server, name: str, *, max_tokens: int = 4000) -> None:
    """Read the first event of a long answer, then close the connection."""
    options = {"headers": {"Authorization": f"Bearer {server.key}", "X-Request-Id": name}}
    address = f"{server.url}/v1/chat/completions"
    with httpx.stream(
        "POST", address, json=chat(max_tokens=max_tokens, stream=True), timeout=60, **options
    ) as answer:
        assert next(answer.iter_lines()).startswith("data: ")


def leave_before_the_answer(server: Server, name: str) -> None:
    """Ask for a long answer, wait a second, then close the connection."""
    options = {"headers": {"Authorization": f"Bearer {server.key}", "X-Request-Id": name}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=chat(max_tokens=4000), timeout=1.0, **options)
