"""How object storage is reached; secrets by reference only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from echoray.config.base import Section
from echoray.config.data import REFERENCE


class S3Access(Section):
    """One S3 service; the environment or the pod is the identity where no key of it is set."""

    endpoint_url: str | None = Field(
        None, pattern=r"^https?://[^@?#]+$", description="S3 endpoint other than AWS"
    )
    region: str | None = None
    profile: str | None = Field(None, description="a profile of the shared AWS configuration files")
    credentials_ref: str | None = Field(
        None,
        pattern=REFERENCE,
        description="env:NAME or file:PATH of ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN]",
    )
    verify: bool = Field(True, description="check the server's certificate")
    ca_bundle: str | None = Field(None, description="PEM file of the authorities to trust; else the system's")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="where the bucket's name goes; many services other than AWS want path"
    )
    max_attempts: int = Field(5, ge=1, le=20, description="of one request, the first included")
    timeout_s: float = Field(60, gt=0, description="longest wait for the server's next bytes")

    @model_validator(mode="after")
    def _one_identity_and_one_answer(self) -> S3Access:
        if self.profile and self.credentials_ref:
            raise ValueError("profile and credentials_ref are both set; expected one of them")
        if self.ca_bundle and not self.verify:
            raise ValueError("ca_bundle is set but verify is false; expected verify: true, or no ca_bundle")
        return self


class StorageConfig(S3Access):
    """How every s3:// URI is reached; ``buckets`` names what needs another service or identity."""

    buckets: dict[str, S3Access] = Field({}, description="by bucket name; replaces the other keys as a whole")

    def access(self, uri: str) -> S3Access:
        """How ``uri`` is reached."""
        scheme, _, rest = uri.partition("://")
        own = self.buckets.get(rest.partition("/")[0]) if scheme == "s3" else None
        return own or S3Access(**{name: getattr(self, name) for name in S3Access.model_fields})
