"""A minimal client of the endpoint; any OpenAI client works as well."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING

from echoray.errors import ServingError, UsageError

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 600.0
_JPEG_START = b"\xff\xd8"


def data_url(image: bytes) -> str:
    """A PNG or JPEG as a data: URL."""
    kind = "jpeg" if image.startswith(_JPEG_START) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def ask(base_url: str, api_key: str, model: str, prompt: str, image_png: bytes) -> str:
    """Send one image (PNG or JPEG) and a question; return the draft answer.

    Raises ServingError with the endpoint's own message when it refuses or cannot be reached, UsageError when
    ``base_url`` or ``api_key`` cannot be one, or something else than an endpoint answers.
    """
    content = [
        {"type": "image_url", "image_url": {"url": data_url(image_png)}},
        {"type": "text", "text": prompt},
    ]
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    response = _post(base_url, api_key, body)
    if response.status_code != 200:
        raise ServingError(
            f"{base_url} refused the request ({response.status_code})", hint=_reason(response.text)
        )
    return _answer_of(response, base_url)


def _post(base_url: str, api_key: str, body: Mapping[str, object]) -> httpx.Response:
    import httpx

    if not (api_key.isascii() and api_key.isprintable()):
        raise UsageError("the API key holds characters that no key has", hint="copy the whole key again")
    try:
        return httpx.post(
            f"{base_url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=_TIMEOUT_S,
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise UsageError(f"{base_url!r} is no address: {error}", hint="give it as http://HOST:PORT") from None
    except httpx.HTTPError as error:
        raise ServingError(
            f"{base_url} does not answer ({type(error).__name__})",
            hint="check the address, start the endpoint",
        ) from None


def _answer_of(response: httpx.Response, base_url: str) -> str:
    try:
        answer = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        answer = None
    if not isinstance(answer, str):
        raise UsageError(
            f"{base_url} answers, but not with a chat completion",
            hint="something else listens there: give the endpoint's address as http://HOST:PORT",
        )
    return answer


def _reason(text: str) -> str:
    import json

    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "see the endpoint's log"
