"""A minimal client of the endpoint; any OpenAI client works as well."""

from __future__ import annotations

import base64

from echoray.errors import ServingError

_TIMEOUT_S = 600.0
_JPEG_START = b"\xff\xd8"


def data_url(image: bytes) -> str:
    """A PNG or JPEG as a data: URL."""
    kind = "jpeg" if image.startswith(_JPEG_START) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def ask(base_url: str, api_key: str, model: str, prompt: str, image_png: bytes) -> str:
    """Send one image (PNG or JPEG) and a question; return the draft answer.

    Raises ServingError with the endpoint's own message when it refuses or cannot be reached.
    """
    import httpx

    content = [
        {"type": "image_url", "image_url": {"url": data_url(image_png)}},
        {"type": "text", "text": prompt},
    ]
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    try:
        response = httpx.post(
            f"{base_url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=_TIMEOUT_S,
        )
    except httpx.HTTPError as error:
        raise ServingError(
            f"{base_url} does not answer ({type(error).__name__})",
            hint="check the address, start the endpoint",
        ) from None
    if response.status_code != 200:
        raise ServingError(
            f"{base_url} refused the request ({response.status_code})", hint=_reason(response.text)
        )
    return str(response.json()["choices"][0]["message"]["content"])


def _reason(text: str) -> str:
    import json

    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "see the endpoint's log"
