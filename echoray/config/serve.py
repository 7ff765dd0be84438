"""The reporting endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from echoray.config.base import Section


class ServeConfig(Section):
    """Engine, address, authentication and limits of the endpoint."""

    engine: Literal["transformers", "vllm"] = "vllm"
    model_name: str = "echovlm"
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535, description="0 takes a free port")
    api_keys_ref: str = Field(
        "env:ECHORAY_API_KEY_HASHES",
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$",
        description="env:NAME or file:PATH with one SHA-256 (hex) of an accepted API key per line",
    )
    num_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1, description="upper bound of autoscaling on queued requests")
    max_ongoing_requests: int = Field(16, ge=1, description="per replica; more answer 429 with Retry-After")
    max_new_tokens: int = Field(1024, ge=1)
    max_images: int = Field(16, ge=0)
    max_image_pixels: int = Field(4096 * 4096, ge=1)
    max_request_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    request_timeout_s: float = Field(300.0, gt=0)
