"""The HTTP face of a replica: routes, OpenAI's JSON and server-sent events."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse

from echoray.errors import EchoRayError
from echoray.serve.engine import Delta, FinishReason
from echoray.serve.exported import DISCLAIMER
from echoray.serve.protocol import ChatRequest, RequestError, error_body, parse_chat
from echoray.serve.request_log import RequestLog
from echoray.serve.service import ChatService


def create_http_app(service: ChatService, access_log: logging.Logger) -> FastAPI:
    """The ASGI application of one replica."""
    app = FastAPI(title="EchoRay", description=DISCLAIMER, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLog, access_log=access_log)
    started = int(time.time())

    @app.exception_handler(EchoRayError)
    async def refuse(request: Request, error: EchoRayError) -> JSONResponse:
        status, body, headers = _refusal(error)
        return JSONResponse(body, status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        body = error_body(str(error.detail), "invalid_request_error", "no_such_route")
        return JSONResponse(body, error.status_code, error.headers)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        ready = await service.ready()
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        service.keys.require(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [_model_card(service, started)]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        return await _chat(service, request)

    return app


async def _chat(service: ChatService, request: Request) -> Any:
    service.keys.require(request.headers.get("authorization"))
    # The slot is given back by the middleware, when the last byte is sent or the client is gone.
    request.state.resources.enter_context(service.slot())
    parsed = parse_chat(await _read_body(request, service.limits.max_request_bytes))
    prompt, sampling = await service.prepare(parsed)
    request.state.log |= {
        "stream": parsed.stream,
        "num_images": len(prompt.images),
        "finish_reason": "cancelled",  # until it is known better
        "prompt_tokens": prompt.num_tokens,
    }
    reply = _Reply(service, request, parsed, prompt.num_tokens)
    deltas = service.answer(prompt, sampling, reply.request_id)
    if parsed.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(reply.events(deltas), media_type="text/event-stream", headers=headers)
    return JSONResponse(await reply.whole(deltas))


class _Reply:
    """The JSON of one answer, whole or in events."""

    def __init__(
        self, service: ChatService, request: Request, parsed: ChatRequest, prompt_tokens: int
    ) -> None:
        self.request_id: str = request.state.request_id
        self._log: dict[str, Any] = request.state.log
        self._prompt_tokens = prompt_tokens
        self._with_usage = parsed.stream_options is not None and parsed.stream_options.include_usage
        self._head = {
            "id": f"chatcmpl-{self.request_id}",
            "created": int(time.time()),
            "model": parsed.model,
            "system_fingerprint": service.model_version,
        }

    async def whole(self, deltas: AsyncIterator[Delta]) -> dict[str, Any]:
        """A chat.completion object."""
        texts, last = [], None
        async for last in deltas:
            texts.append(last.text)
        assert last is not None
        self._finished(last)
        message = {"role": "assistant", "content": "".join(texts), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(last),
        }

    async def events(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
        """Server-sent chat.completion.chunk events; an error after the start becomes an event, too."""
        try:
            yield self._chunk({"role": "assistant", "content": ""}, None)
            async for delta in deltas:
                if delta.text:
                    yield self._chunk({"content": delta.text}, None)
                if delta.finish_reason is not None:
                    self._finished(delta)
                    yield self._chunk({}, delta.finish_reason)
                    if self._with_usage:
                        yield _event(
                            self._head
                            | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage(delta)}
                        )
        except EchoRayError as error:
            status, body, _ = _refusal(error)
            self._log |= {"error": body["error"]["code"], "status": status, "finish_reason": "error"}
            yield _event(body)
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], reason: FinishReason | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._head | {"object": "chat.completion.chunk", "choices": [choice]})

    def _usage(self, last: Delta) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": last.num_tokens,
            "total_tokens": self._prompt_tokens + last.num_tokens,
        }

    def _finished(self, last: Delta) -> None:
        self._log |= {"completion_tokens": last.num_tokens, "finish_reason": last.finish_reason}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _refusal(error: EchoRayError) -> tuple[int, dict[str, Any], dict[str, str]]:
    if isinstance(error, RequestError):
        return error.status, error.body(), error.headers()
    message = f"{error.message}; {error.hint}"
    return 503, error_body(message, "server_error", "engine_error"), {"Retry-After": "5"}


def _model_card(service: ChatService, started: int) -> dict[str, Any]:
    return {
        "id": service.limits.model_name,
        "object": "model",
        "created": started,
        "owned_by": "echoray",
        "version": service.model_version,
        "max_model_len": service.exported.context_tokens,
        "image_size_px": service.exported.image_size_px,
        "image_layout": service.exported.image_layout,
        "disclaimer": DISCLAIMER,
    }


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than ``max_bytes``; RequestError 413 beyond."""
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else 0
    body = bytearray()
    if size <= max_bytes:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                break
    if max(size, len(body)) > max_bytes:
        raise RequestError(
            f"the request is larger than {max_bytes} bytes",
            hint="send fewer or smaller images",
            status=413,
            code="request_too_large",
        )
    return bytes(body)
