"""The small server on which experts review a sample: one page, a few JSON routes, one token.

Every decision is an object in the store before it is acknowledged (``DecisionLog``). Who generated an item is
not shown: the review is blind to the source. Logs hold neither texts nor the token.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from echoray.data.instruct.decisions import (
    REVIEW_REASONS,
    DecisionError,
    DecisionLog,
    checked_decision,
    checked_reviewer,
)
from echoray.data.instruct.review import Sampled, parent_of, read_sample, sample_name
from echoray.data.instruct.study_texts import StudyTexts
from echoray.errors import EchoRayError
from echoray.storage import Store
from echoray.types import ArtifactRef

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_SAID = ("choice", "reason", "prompt", "answer")
MAX_BODY_BYTES = 64 * 1024
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PAGES = {"/": ("html", "text/html"), "/page.css": ("css", "text/css"), "/page.js": ("js", "text/javascript")}


class Review:
    """A sample, its pictures and the decisions about it, as the routes need them."""

    def __init__(self, store: Store, sample: ArtifactRef) -> None:
        self._store, self._sample = store, sample
        self.items: list[Sampled] = read_sample(store, sample)
        self.places = {one.item.item_id: place for place, one in enumerate(self.items)}
        self._log = DecisionLog(store, sample_name(sample))
        self._decided: dict[str, set[int]] = {}
        # The pictures of an item's study, none where that version of the studies is gone. The page asks for
        # them one by one, and a study's are read together.
        self.pictures = lru_cache(maxsize=8)(self._pictures)

    def decided(self, reviewer: str) -> set[int]:
        """The places of the items that a reviewer has decided."""
        if reviewer not in self._decided:
            mine = [one for one in self._log.current() if one.reviewer == reviewer]
            self._decided[reviewer] = {self.places[one.item_id] for one in mine if one.item_id in self.places}
        return self._decided[reviewer]

    def progress(self, reviewer: str, after: int) -> dict[str, Any]:
        """How far a reviewer is, and the next open item after a place, round the end."""
        done, total = self.decided(reviewer), len(self.items)
        order = [(after + 1 + step) % total for step in range(total)]
        following = next((place for place in order if place not in done), None)
        return {"total": total, "decided": len(done), "next": following, "reasons": REVIEW_REASONS}

    def shown(self, place: int, reviewer: str) -> dict[str, Any]:
        """One item as the page shows it, with what the reviewer said of it."""
        one = self.items[place]
        said = self._log.history(reviewer, one.item.item_id)
        last = said[-1] if said and said[-1].choice != "withdraw" else None
        return {
            "item_id": one.item.item_id,
            "system": one.item.system,
            "language": one.item.language,
            "part": one.item.part,
            "prompt": one.item.prompt,
            "answer": one.item.answer,
            "findings": one.report.findings,
            "impression": one.report.impression,
            "pictures": len(self.pictures(place)),
            "decision": last and {name: getattr(last, name) for name in _SAID},
        }

    def _pictures(self, place: int) -> list[bytes]:
        try:
            return self._texts.pictures(self.items[place].item.study_hash)
        except EchoRayError:
            return []

    def decide(self, values: Mapping[str, Any]) -> None:
        """Take a decision; DecisionError where it is none, KeyError where the item is not of the sample."""
        decision = checked_decision(values)
        place = self.places[decision.item_id]
        done = self.decided(decision.reviewer)
        self._log.append(decision)
        if decision.choice == "withdraw":
            done.discard(place)
        else:
            done.add(place)

    @cached_property
    def _texts(self) -> StudyTexts:
        return StudyTexts(self._store, parent_of(self._store, self._sample, "studies"))


def review_app(store: Store, sample: ArtifactRef, token: str) -> Starlette:
    """The ASGI application; every route but the page itself wants ``Authorization: Bearer TOKEN``."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    review = Review(store, sample)

    async def page(request: Request) -> Response:
        name, kind = _PAGES[request.url.path]
        text = files(__package__).joinpath(f"review_page.{name}").read_text(encoding="utf-8")
        return Response(text, media_type=kind)

    async def progress(request: Request) -> Response:
        after = request.query_params.get("after", "-1")
        place = int(after) if after.lstrip("-").isdigit() else -1
        return JSONResponse(review.progress(_reviewer(request), place))

    async def item(request: Request) -> Response:
        return JSONResponse(review.shown(_place(request, review), _reviewer(request)))

    async def picture(request: Request) -> Response:
        found = review.pictures(_place(request, review))
        return Response(found[request.path_params["number"]], media_type="image/png")

    async def decide(request: Request) -> Response:
        review.decide(await _body(request))
        return JSONResponse({"taken": True})

    guarded = _guard(token)
    routes = [
        *(Route(path, page) for path in _PAGES),
        Route("/api/progress", guarded(progress)),
        Route("/api/items/{place:int}", guarded(item)),
        Route("/api/items/{place:int}/pictures/{number:int}", guarded(picture)),
        Route("/api/decisions", guarded(decide), methods=["POST"]),
    ]
    return Starlette(routes=routes)


Endpoint = Callable[["Request"], Awaitable["Response"]]


def _guard(token: str) -> Callable[[Endpoint], Endpoint]:
    """Check the token before an endpoint, and turn its errors into answers that say what to do."""
    from starlette.responses import JSONResponse

    def refused(status: int, error: str, hint: str) -> Response:
        return JSONResponse({"error": error, "hint": hint}, status_code=status)

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def answer(request: Request) -> Response:
            given = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                return refused(401, "wrong or no token", "open the address that the server printed")
            try:
                return await endpoint(request)
            except DecisionError as error:
                return refused(422, error.message, error.hint)
            except _TooLargeError:
                return refused(413, "the request is too large", f"send at most {MAX_BODY_BYTES} bytes")
            except (KeyError, IndexError):
                return refused(404, "not in the sample", "take the items that the page shows")
            except EchoRayError as error:
                return refused(503, error.message, error.hint)

        return answer

    return guarded


class _TooLargeError(Exception):
    """A body beyond the limit."""


async def _body(request: Request) -> Mapping[str, Any]:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise _TooLargeError
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DecisionError("not a JSON object", hint="send the fields that the page sends")
    return values


def _reviewer(request: Request) -> str:
    return checked_reviewer(request.query_params.get("reviewer", ""))


def _place(request: Request, review: Review) -> int:
    place = int(request.path_params["place"])
    if place >= len(review.items):
        raise IndexError(place)
    return place


def with_headers(app: Any) -> Any:
    """The application, whose every answer carries the security headers."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def with_ours(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        await app(scope, receive, with_ours if scope["type"] == "http" else send)

    return wrapped


def serve_review(
    store: Store,
    sample: ArtifactRef,
    *,
    host: str,
    port: int,
    token: str,
    started: Callable[[str], None],
) -> None:
    """Serve until interrupted; ``started`` is told the address, with the token in its fragment.

    A fragment is not sent to servers, so that it is in no log. Raises EchoRayError where the port is taken.
    """
    import socket

    import uvicorn

    app = with_headers(review_app(store, sample, token))
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
        server.listen()  # whoever opens the address at once waits, and is not refused
    except OSError as error:
        raise EchoRayError(
            f"{host} port {port}: {error.strerror}", hint="choose another --port, or 0 for a free one"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{server.getsockname()[1]}/#token={token}")
    settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(settings).run(sockets=[server])
