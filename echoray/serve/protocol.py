"""The wire format: the part of OpenAI's chat completions that the endpoint speaks, and its errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from echoray.errors import UsageError
from echoray.serve.engine import Sampling


class RequestError(UsageError):
    """A request that is refused; becomes OpenAI's error JSON. Never holds what the request said."""

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return error_body(f"{self.message}; {self.hint}", _error_type(self.status), self.code, self.param)

    def headers(self) -> dict[str, str]:
        """Response headers beyond the defaults."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error JSON."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _error_type(status: int) -> str:
    known = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return known.get(status, "server_error" if status >= 500 else "invalid_request_error")


class _Wire(BaseModel):
    # An option that is not supported is refused rather than silently ignored.
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Wire):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Wire):
    """``url`` is a data: URL; nothing is ever fetched."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Wire):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Wire):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return list(self.content)

    @model_validator(mode="after")
    def _images_come_from_the_user(self) -> Message:
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.parts):
            raise ValueError(f"a {self.role} message holds an image, expected images in user messages only")
        return self


class StreamOptions(_Wire):
    """``include_usage`` adds a last chunk with the token counts."""

    include_usage: bool = False


StopText = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ChatRequest(_Wire):
    """The body of POST /v1/chat/completions. The default temperature is 0: deterministic."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Accepted with the one value that means "off", because clients send them unasked.
    n: Literal[1] = 1
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    presence_penalty: float = Field(0.0, ge=0, le=0)
    user: str | None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must have the role 'user'")
        return self

    def sampling(self, *, max_tokens: int) -> Sampling:
        """The decoding options with the resolved ``max_tokens``."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(max_tokens, self.temperature, self.top_p, stop, self.seed)


def parse_chat(body: bytes) -> ChatRequest:
    """Validate a request body; RequestError names the field and never repeats its value."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            message, where = "the body is not valid JSON", None
        raise RequestError(
            f"{where}: {message}" if where else message,
            hint="see docs/application.md for the supported fields",
            param=where,
        ) from None
