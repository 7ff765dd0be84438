"""An S3 endpoint that fails as real ones do: a proxy before a good server (python -m ... UPSTREAM PORT RATE).

A share RATE of the requests, drawn from a seeded generator, gets an error, a delay, or a connection that
breaks in the middle of the answer. GET /__faults tells how often each happened.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter

from aiohttp import ClientSession, web

KINDS = ("500", "503", "slow", "reset_before", "reset_within")
_DELAY_S = 1.5
_ERRORS = {"500": (500, "InternalError"), "503": (503, "SlowDown")}


class FaultyProxy:
    """Forwards requests to ``upstream`` and spoils some."""

    def __init__(self, upstream: str, rate: float, seed: int = 0) -> None:
        self.upstream, self.rate, self.random = upstream, rate, random.Random(seed)
        self.faults: Counter[str] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/__faults":
            return web.json_response(self.faults)
        kind = self.random.choice(KINDS) if self.random.random() < self.rate else None
        if kind:
            self.faults[kind] += 1
        body = await request.read()
        if kind in _ERRORS:
            status, code = _ERRORS[kind]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        if kind == "slow":
            await asyncio.sleep(_DELAY_S)
        if kind == "reset_before":
            self._abort(request)
        status, headers, content = await self._forwarded(request, body)
        response = web.StreamResponse(status=status, headers=headers)
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        if kind == "reset_within":
            self._abort(request)
        await response.write(content[len(content) // 2 :])
        return response

    async def _forwarded(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        skipped = {"host", "content-length", "transfer-encoding", "connection"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in skipped}
        headers["Host"] = request.host  # it is part of the signature
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, self.upstream + request.raw_path, headers=headers, data=body or None
            ) as answer,
        ):
            kept = {
                name: value
                for name, value in answer.headers.items()
                if request.method == "HEAD" or name.lower() not in skipped
            }
            return answer.status, kept, await answer.read()

    @staticmethod
    def _abort(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError


def main(upstream: str, port: str, rate: str) -> None:
    """Serve until the process is ended."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", FaultyProxy(upstream, float(rate)).handle)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
