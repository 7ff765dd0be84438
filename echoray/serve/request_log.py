"""The middleware around every request: its log line, the release of what it holds, a last-resort error."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import traceback
import uuid
from asyncio import CancelledError
from contextlib import ExitStack
from typing import Any

from ray.exceptions import TaskCancelledError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from echoray.serve.protocol import error_body

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_CLIENT_CLOSED = 499


class RequestLog:
    """Writes one JSON line per request and closes ``request.state.resources`` when it is over.

    The line has counts and times only: never a prompt, an answer, an image or an address.
    """

    def __init__(self, app: ASGIApp, access_log: logging.Logger) -> None:
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = _request_id(scope), time.monotonic()
        log: dict[str, Any] = {
            "request_id": request_id,
            "path": _known_path(scope),
            "method": scope["method"],
        }
        responded = False

        async def send_noting_status(message: Message) -> None:
            nonlocal responded
            if message["type"] == "http.response.start":
                responded = True
                log["status"] = message["status"]
            await send(message)

        with ExitStack() as resources:
            scope["state"] = {"request_id": request_id, "log": log, "resources": resources}
            try:
                await self._app(scope, receive, send_noting_status)
            except (CancelledError, TaskCancelledError, ClientDisconnect):
                log["status"] = _CLIENT_CLOSED
                raise
            except Exception as error:
                log |= {"status": 500, "error": type(error).__name__, "at": _where(error)}
                if not responded:
                    await _send_internal_error(scope, receive, send_noting_status)
            finally:
                log["duration_s"] = round(time.monotonic() - started, 4)
                self._access_log.info(json.dumps(log, sort_keys=True))


def _request_id(scope: Scope) -> str:
    # Serve's proxy makes one where the client sent none, and returns it as X-Request-Id.
    given: bytes = dict(scope["headers"]).get(b"x-request-id", b"") or uuid.uuid4().hex.encode()
    return given.decode() if _REQUEST_ID.fullmatch(given) else hashlib.sha256(given).hexdigest()[:32]


def _known_path(scope: Scope) -> str:
    # A client may put anything into an address.
    known = {"/healthz", "/readyz", "/v1/models", "/v1/chat/completions"}
    return scope["path"] if scope["path"] in known else "other"


def _where(error: Exception) -> str:
    # The error's own message may quote the request, so only its place is logged.
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else "unknown"


async def _send_internal_error(scope: Scope, receive: Receive, send: Send) -> None:
    body = error_body(
        "internal error; quote X-Request-Id when you report it", "server_error", "internal_error"
    )
    await JSONResponse(body, 500)(scope, receive, send)
