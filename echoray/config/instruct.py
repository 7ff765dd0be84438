"""Instruction data (She et al., EchoVLM, section 3.1 and appendix A): who writes it and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from echoray.config.base import Section
from echoray.config.data import REFERENCE
from echoray.config.screen import ScreenConfig

RULES = "rules"


class RulesMember(Section):
    """The generator that needs no model: what the report states, and guidance for what it states."""

    kind: Literal["rules"] = "rules"
    name: str = Field(RULES, pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="as provenance records it")
    weight: float = Field(1, ge=0, description="its share of the requests, relative to the others'")

    @property
    def model(self) -> str:
        """What provenance calls the generator's model."""
        return RULES

    @property
    def max_images(self) -> int:
        """It sees no pictures."""
        return 0


class ModelMember(Section):
    """What any language model of the pool is asked for."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="as provenance records it")
    weight: float = Field(1, ge=0, description="its share of the requests; 0: it only judges")
    model: str = Field(min_length=1, description="the model's name at its service, or its directory")
    max_images: int = Field(0, ge=0, le=20, description="pictures sent with a report; 0 for a text model")
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(1024, ge=16, description="of one answer")
    structured: bool = Field(True, description="have the service keep to the JSON schema of an answer")
    answer_attempts: int = Field(
        3, ge=1, le=10, description="how often it is asked while its answer is not of the asked form"
    )


class OpenAIMember(ModelMember):
    """An endpoint with the OpenAI chat completions interface."""

    kind: Literal["openai"] = "openai"
    url: str = Field(pattern=r"^https?://[^/?#@]+[^?#]*$", description="base: URL/chat/completions")
    key_ref: str | None = Field(None, pattern=REFERENCE, description="env:NAME or file:PATH of the API key")
    requests_per_minute: float | None = Field(None, gt=0, description="of all workers together")
    concurrency: int = Field(8, ge=1, le=1024, description="requests under way at once")
    timeout_s: float = Field(120, gt=0, description="of one request as a whole")
    attempts: int = Field(6, ge=1, le=20, description="of a request that met 429, 5xx or a lost connection")
    price_in: float = Field(0, ge=0, description="per million prompt tokens, in your contract's currency")
    price_out: float = Field(0, ge=0, description="per million answer tokens")

    @field_validator("url")
    @classmethod
    def _without_slash(cls, url: str) -> str:
        return url.rstrip("/")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What tokens cost, in the currency of the prices."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


class VllmMember(ModelMember):
    """A model that vLLM runs on this cluster, in batches through ``ray.data.llm``."""

    kind: Literal["vllm"] = "vllm"
    replicas: int = Field(1, ge=1, description="engines side by side")
    gpus_per_replica: int = Field(1, ge=0, description="tensor-parallel size; 0: vLLM's CPU build")
    batch_size: int = Field(64, ge=1, description="requests handed to an engine at once")
    max_model_len: int = Field(8192, ge=256, description="tokens of prompt and answer")
    engine: dict[str, Any] = Field({}, description="further arguments of vLLM's engine")


Member = Annotated[RulesMember | OpenAIMember | VllmMember, Field(discriminator="kind")]
# Where it runs, how fast and at what price: none of it decides what is answered.
_NOT_DECIDING = {
    "url", "key_ref", "requests_per_minute", "concurrency", "timeout_s", "attempts", "price_in", "price_out",
    "replicas", "gpus_per_replica", "batch_size",
}  # fmt: skip


def deciding(member: RulesMember | OpenAIMember | VllmMember) -> dict[str, Any]:
    """The settings of a member that decide what it answers."""
    return member.model_dump(mode="json", exclude=_NOT_DECIDING)


class InstructConfig(Section):
    """How instruction data is generated and checked."""

    enabled: bool = Field(
        False, description="train on generated conversations; else on a few fixed questions of each report"
    )
    members: tuple[Member, ...] = Field((RulesMember(),), min_length=1, description="the generator pool")
    items_per_request: int = Field(5, ge=1, le=20, description="questions asked for at once")
    max_rounds: int = Field(3, ge=1, le=10, description="how often suspended sets are made again, at most")
    dedup_exempt: tuple[Literal["report", "diagnosis"], ...] = Field(
        (), description="parts of which near duplicates are kept: pictures differ where reports do not"
    )
    require_review: bool = Field(False, description="no training before every sampled item has a decision")
    screen: ScreenConfig = ScreenConfig()

    @property
    def generators(self) -> tuple[Member, ...]:
        """The members that are asked for items; the others only judge."""
        return tuple(one for one in self.members if one.weight)

    @field_validator("members")
    @classmethod
    def _usable(
        cls, members: Sequence[RulesMember | OpenAIMember | VllmMember]
    ) -> Sequence[RulesMember | OpenAIMember | VllmMember]:
        names = [one.name for one in members]
        if len(set(names)) != len(names):
            raise ValueError("two members have the same name; expected a name for each")
        if not any(one.weight for one in members):
            raise ValueError("no member has a weight above 0; expected one that generates")
        return members
