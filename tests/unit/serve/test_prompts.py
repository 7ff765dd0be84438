"""Requests become the prompts and pictures that training saw; hostile images never reach a decoder."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from echoray.config import ServeConfig
from echoray.data.batch import grid_of
from echoray.data.conversations import SYSTEM_PROMPT
from echoray.data.frames import model_picture
from echoray.data.tokens import ConversationTokenizer, expand_images
from echoray.model.base import WEIGHTS
from echoray.serve.client import data_url
from echoray.serve.exported import ExportedModel
from echoray.serve.prompts import Prompter, decode_image
from echoray.serve.protocol import ChatRequest, RequestError, parse_chat

IMAGE_PX = 168
EXPORTED = ExportedModel(
    folder=WEIGHTS,
    image_size_px=IMAGE_PX,
    image_layout="dynamic",
    system_prompt=SYSTEM_PROMPT,
    version="1",
    context_tokens=300,
    architecture="EchoVLMForConditionalGeneration",
)


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    return Prompter(EXPORTED, ServeConfig(max_new_tokens=100))


def picture(mode: str = "RGB", kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(2).integers(30, 255, (40, 70, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(target, kind)
    return target.getvalue()


def request(text: str, num_images: int = 0, **options: object) -> ChatRequest:
    image = {"type": "image_url", "image_url": {"url": data_url(picture())}}
    content = [image] * num_images + [{"type": "text", "text": text}]
    return ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": content}], **options}
    )


@pytest.mark.parametrize(
    ("text", "language"), [("Write the report.", "en"), ("请写出这些超声图像的报告。", "zh")]
)
@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_a_prompt_and_its_pictures_equal_those_of_training(
    prompter: Prompter, text: str, language: str, num_images: int
) -> None:
    prompt, _ = prompter.render(request(text, num_images))
    training = ConversationTokenizer(WEIGHTS, 1024)
    grids = [grid_of(one) for one in prompt.images]
    assert grids == [(1, 4, 6)] * num_images  # of 40 x 70 pixels
    expected = training.prompt_text(text, language, grids)
    assert expand_images(prompt.text, grids) == expected
    assert prompt.num_tokens == len(training.tokenizer(expected).input_ids)
    pixels = np.asarray(Image.open(io.BytesIO(picture())))
    assert prompt.images == (model_picture(pixels, IMAGE_PX, "dynamic"),) * num_images


def test_a_clients_own_system_message_replaces_ours(prompter: Prompter) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    prompt, _ = prompter.render(ChatRequest.model_validate({"model": "m", "messages": messages}))
    assert prompt.text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>"
    )


def test_the_answer_gets_what_room_the_context_leaves(prompter: Prompter) -> None:
    short, sampling = prompter.render(request("Hi."))
    assert sampling.max_tokens == 100
    prompt, sampling = prompter.render(request("word " * 220))
    assert sampling.max_tokens == 300 - prompt.num_tokens < 100
    assert prompt.num_tokens > short.num_tokens
    for text in ("word " * 400, "x" * 1_000_000):
        with pytest.raises(RequestError, match="room for 300 tokens"):
            prompter.render(request(text))


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|image_pad|>b", "<|vision_start|>"])
def test_reserved_tokens_in_text_are_refused_unless_only_alike(prompter: Prompter, text: str) -> None:
    with pytest.raises(RequestError, match="reserved token"):
        prompter.render(request(text))
    prompter.render(request("a <| b |> c"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_every_eight_bit_png_decodes_to_rgb(mode: str) -> None:
    pixels = decode_image(data_url(picture(mode)), "p", 10_000)
    assert (pixels.shape, pixels.dtype) == ((40, 70, 3), np.uint8)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(picture(mode))).convert("RGB")))


def bomb(side_px: int) -> bytes:
    """A PNG that claims a huge picture and has next to no content."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (data_url(bomb(101)), "image_too_large"),
        (data_url(bomb(60_000)), "image_too_large"),
        (data_url(picture("I;16")), "invalid_image"),
        (f"data:image/png;base64,{base64.b64encode(picture(kind='GIF')).decode()}", "invalid_image"),
        (data_url(picture())[:-40], "invalid_image"),
        ("data:image/png;base64,@@@", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        (f"DATA:IMAGE/PNG;BASE64,{base64.b64encode(picture()).decode()}", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("https://example.org/a.png", "invalid_image_url"),
        ("", "invalid_image_url"),
    ],
)
def test_what_is_no_safe_image_is_refused_before_its_pixels_are_decoded(url: str, code: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_image(url, "messages.0", 10_000)
    assert refused.value.code == code
    assert refused.value.param == "messages.0"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (
            '{"model": "m", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}',
            "messages.0.content",
        ),
        ('{"model": "m", "messages": [{"role": "tool", "content": "SECRET"}]}', "messages.0.role"),
        ('{"model": "m", "messages": [{"role": "user", "content": "a"}], "n": 2}', "n"),
        ('{"model": "m", "messages": [{"role": "user", "content": "a"}], "SECRET": 2}', "SECRET"),
        (
            '{"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": "SECRET"}',
            "temperature",
        ),
        ('{"messages": [{"role": "user", "content": "SECRET"}]}', "model"),
    ],
)
def test_an_invalid_field_is_named_without_repeating_its_value(body: str, where: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_chat(body.encode())
    assert str(refused.value.param).startswith(where)
    assert "SECRET" not in refused.value.message.replace(where, "")
