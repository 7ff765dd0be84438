"""From a chat request to the model's prompt, the way training made its own: same template, same pictures."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoray.config import ServeConfig
from echoray.data.batch import grid_of
from echoray.data.conversations import RESERVED
from echoray.data.frames import model_picture
from echoray.data.tokens import num_image_tokens
from echoray.serve.engine import Prompt, Sampling
from echoray.serve.exported import ExportedModel
from echoray.serve.protocol import ChatRequest, ImagePart, Message, RequestError, TextPart

_DATA_URL = re.compile(r"data:image/(png|jpeg);base64,", re.ASCII)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
# No token is longer on average; longer texts need not be tokenized to know that they do not fit.
_MAX_CHARACTERS_PER_TOKEN = 32
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


class Prompter:
    """Renders requests for one model, within the configured limits."""

    def __init__(self, exported: ExportedModel, limits: ServeConfig) -> None:
        from transformers import AutoTokenizer

        import echoray.model  # noqa: F401  (registers the tokenizer class)

        self._exported = exported
        self._limits = limits
        self._tokenizer = AutoTokenizer.from_pretrained(exported.folder)

    def render(self, request: ChatRequest) -> tuple[Prompt, Sampling]:
        """The prompt and how to decode; RequestError where the request is outside the limits."""
        images = self._images(request)
        messages = [_template_message(message) for message in self._with_system_prompt(request.messages)]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if len(text) > self._exported.context_tokens * _MAX_CHARACTERS_PER_TOKEN:
            raise self._too_long(f"the prompt has {len(text)} characters")
        num_tokens = len(self._tokenizer(text).input_ids)
        num_tokens += sum(num_image_tokens(grid_of(image)) - 1 for image in images)
        return Prompt(text, images, num_tokens), self._sampling(request, num_tokens)

    def _images(self, request: ChatRequest) -> tuple[bytes, ...]:
        urls = [
            (f"messages.{turn}.content.{index}.image_url.url", part.image_url.url)
            for turn, message in enumerate(request.messages)
            for index, part in enumerate(message.parts)
            if isinstance(part, ImagePart)
        ]
        if len(urls) > self._limits.max_images:
            raise RequestError(
                f"{len(urls)} images, expected at most {self._limits.max_images}",
                hint="send fewer key frames",
            )
        pixels = (decode_image(url, param, self._limits.max_image_pixels) for param, url in urls)
        size_px, layout = self._exported.image_size_px, self._exported.image_layout
        return tuple(model_picture(one, size_px, layout) for one in pixels)

    def _with_system_prompt(self, messages: list[Message]) -> list[Message]:
        if messages[0].role == "system":
            return messages
        asked = "".join(part.text for part in messages[-1].parts if isinstance(part, TextPart))
        language = "zh" if _CHINESE.search(asked) else "en"
        prompt = self._exported.system_prompt.get(language)
        return messages if prompt is None else [Message(role="system", content=prompt), *messages]

    def _sampling(self, request: ChatRequest, num_tokens: int) -> Sampling:
        room = self._exported.context_tokens - num_tokens
        asked = request.max_completion_tokens or request.max_tokens
        if asked is not None and asked > self._limits.max_new_tokens:
            raise RequestError(
                f"max_tokens is {asked}, expected at most {self._limits.max_new_tokens}",
                hint="ask for fewer tokens",
                param="max_tokens",
            )
        if room < (asked or 1):
            raise self._too_long(f"the prompt has {num_tokens} tokens")
        return request.sampling(max_tokens=asked or min(room, self._limits.max_new_tokens))

    def _too_long(self, what: str) -> RequestError:
        return RequestError(
            f"{what}, prompt and answer have room for {self._exported.context_tokens} tokens",
            hint="send less text, fewer images, or a smaller max_tokens",
            code="context_length_exceeded",
            param="messages",
        )


def _template_message(message: Message) -> dict[str, Any]:
    content = []
    for part in message.parts:
        if isinstance(part, ImagePart):
            content.append({"type": "image"})
            continue
        # A reserved token in the text would forge a turn or an image.
        if RESERVED.search(part.text):
            raise RequestError(
                "a message's text holds a reserved token such as <|im_end|>",
                hint="remove it",
                param="messages",
            )
        content.append({"type": "text", "text": part.text})
    if message.role == "user":
        return {"role": message.role, "content": content}
    return {"role": message.role, "content": "".join(part["text"] for part in content)}


def decode_image(url: str, param: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a data: URL with a PNG or JPEG to RGB (H, W, 3); RequestError for anything else.

    The size is checked before any pixel is decoded.
    """
    from PIL import Image

    match = _DATA_URL.match(url)
    if match is None:
        raise RequestError(
            "an image is not a data: URL with a PNG or JPEG (remote addresses are never fetched)",
            hint="send data:image/png;base64,... or data:image/jpeg;base64,...",
            code="invalid_image_url",
            param=param,
        )
    try:
        content = base64.b64decode(url[match.end() :], validate=True)
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            if image.mode in _EIGHT_BIT_MODES:
                return np.asarray(image.convert("RGB"))
            problem = f"has the pixel format {image.mode}, expected 8 bits per channel"
    except Image.DecompressionBombError:
        raise RequestError(
            f"an image has more than {max_pixels} pixels",
            hint="send it smaller",
            status=413,
            code="image_too_large",
            param=param,
        ) from None
    except (binascii.Error, OSError, ValueError, SyntaxError):
        problem = "is not a readable PNG or JPEG"
    raise RequestError(f"an image {problem}", hint="encode it again", code="invalid_image", param=param)
