"""Judges of the pool that an endpoint answers for; their answers are kept like the generators'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from echoray.config.instruct import InstructConfig, OpenAIMember, deciding
from echoray.config.screen import ScreenConfig
from echoray.data.instruct.answers import Answer, AnswerCache
from echoray.data.instruct.llm_judge import LlmJudge, verification_digest
from echoray.data.instruct.openai_client import EXHAUSTED, OpenAIClient, RefusedError, ServiceError
from echoray.data.instruct.prescreen import Completer, Judge, Message
from echoray.data.instruct.requests import prompt_digest, request_key
from echoray.data.instruct.rule_judges import rule_judges
from echoray.errors import ConfigError
from echoray.storage import Store


def judging_members(config: InstructConfig) -> list[OpenAIMember]:
    """The endpoints that judge; ConfigError where a name of ``screen.pool`` is none's."""
    endpoints = {one.name: one for one in config.members if isinstance(one, OpenAIMember)}
    for name in config.screen.pool:
        if name not in endpoints:
            raise ConfigError(
                f"instruct.screen.pool: {name} is no endpoint of instruct.members",
                hint=f"one of: {', '.join(endpoints) or 'none is configured'}",
            )
    return [endpoints[name] for name in config.screen.pool]


def pool_of(config: InstructConfig) -> Any:
    """What decides the endpoints' verdicts, or None where there are none."""
    members = judging_members(config)
    return [[deciding(one) for one in members], verification_digest()] if members else None


def judges_for(
    config: InstructConfig, store: Store, seed: int, num_workers: int
) -> Callable[[ScreenConfig], Sequence[Judge]]:
    """Makes the judges in each of ``num_workers`` workers, which share the endpoints' limits."""
    return partial(_judges, [_share(one, num_workers) for one in judging_members(config)], store, seed)


def _judges(
    members: Sequence[OpenAIMember], store: Store, seed: int, config: ScreenConfig
) -> Sequence[Judge]:
    opened = [LlmJudge(one.name, partial(_connected, one, store), seed) for one in members]
    return [*rule_judges(config), *opened]


def _share(member: OpenAIMember, num_workers: int) -> OpenAIMember:
    rate = member.requests_per_minute
    return member.model_copy(
        update={
            "concurrency": max(1, member.concurrency // num_workers),
            "requests_per_minute": rate / num_workers if rate else None,
        }
    )


@asynccontextmanager
async def _connected(member: OpenAIMember, store: Store) -> AsyncIterator[Completer]:
    cache = AnswerCache(store)
    async with OpenAIClient(member) as client:

        async def complete(study_hash: str, messages: Sequence[Message], seed: int) -> str:
            key = request_key(member, prompt_digest(messages, ()), seed)
            answer = await asyncio.to_thread(cache.read, study_hash, key)
            if answer is None:
                answer = await _answer(client, messages, seed)
                await asyncio.to_thread(cache.write, study_hash, key, answer)
            return answer.text

        yield complete


async def _answer(client: OpenAIClient, messages: Sequence[Message], seed: int) -> Answer:
    try:
        made = await client.complete(messages, seed)
    except RefusedError as error:
        if error.reason.startswith(EXHAUSTED):
            # An outage must not look like a pool that abstains.
            raise ServiceError(
                f"instruct member {client.member.name}: gave no verdict, {error.reason}",
                hint="see whether the service is up, then run again: verdicts so far are kept",
            ) from None
        return Answer("", error.reason, seed, 1, 0, 0)
    return Answer(made.text, None, seed, 1, made.tokens_in, made.tokens_out)
