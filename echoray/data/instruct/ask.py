"""Have the pool's endpoints answer every request that has no answer yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from echoray.config.instruct import OpenAIMember
from echoray.data.instruct.answers import Answer, AnswerCache, answer_schema, read_proposed
from echoray.data.instruct.assignment import Assignment
from echoray.data.instruct.asyncs import together
from echoray.data.instruct.openai_client import EXHAUSTED, OpenAIClient, RefusedError, ServiceError
from echoray.data.instruct.requests import Asked
from echoray.types import Progress

_STREAK = 8  # requests in a row without an answer: the service is down, not the requests at fault
STEP = "answers"


def answers_of_endpoints(assignment: Assignment, progress: Progress) -> None:
    """Ask every endpoint of the pool what is for it; answers are kept as they come.

    Raises ServiceError where an endpoint is not to be had, when the others are through.
    """
    members = [one for one in assignment.config.generators if isinstance(one, OpenAIMember)]
    if members:
        asyncio.run(_ask_all(assignment, members, progress))


async def _ask_all(assignment: Assignment, members: Sequence[OpenAIMember], progress: Progress) -> None:
    counter = _Counter(progress)
    runs = [_MemberRun(assignment, one, counter) for one in members]
    results = await asyncio.gather(*(one() for one in runs), return_exceptions=True)
    # An endpoint's trouble must not hide an interrupt or a full disk.
    failed = [one for one in results if isinstance(one, BaseException)]
    for one in sorted(failed, key=lambda error: isinstance(error, ServiceError)):
        raise one


class _Counter:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self) -> None:
        self._done += 1
        self._progress(STEP, self._done, None)


class _MemberRun:
    """All requests of one member, ``concurrency`` at a time, pulled as there is room for them."""

    def __init__(self, assignment: Assignment, member: OpenAIMember, counter: _Counter) -> None:
        self._member, self._counter = member, counter
        parts = (assignment.asked_of(member, work["path"]) for work in assignment.works)
        self._requests = chain.from_iterable(parts)
        self._cache = AnswerCache(assignment.store)
        self._lock = threading.Lock()
        self._answered = False
        self._without: list[tuple[str, str, Answer]] = []  # in a row: not known yet whose fault it is

    async def __call__(self) -> None:
        async with OpenAIClient(self._member) as client:
            await together([self._work(client) for _ in range(self._member.concurrency)])
        await asyncio.to_thread(self._keep_failures)

    async def _work(self, client: OpenAIClient) -> None:
        while (asked := await asyncio.to_thread(self._next)) is not None:
            study = asked.request.study.study_hash
            if await asyncio.to_thread(self._cache.read, study, asked.key) is None:
                answer = await self._answer(client, asked)
                await asyncio.to_thread(self._keep, study, asked.key, answer)
            self._counter()

    def _next(self) -> Asked | None:
        with self._lock:
            return next(self._requests, None)

    async def _answer(self, client: OpenAIClient, asked: Asked) -> Answer:
        """The first answer of the asked form, or the last one, or what the request failed of."""
        first = asked.request.seed
        answer = Answer("", None, first, 0, 0, 0)
        schema = answer_schema(asked.request.parts)
        for attempt in range(self._member.answer_attempts):
            seed = first + attempt
            try:
                made = await client.complete(asked.messages, seed, images=asked.images, schema=schema)
            except RefusedError as error:
                return replace(answer, text="", failure=error.reason, attempts=attempt + 1)
            answer = Answer(
                made.text,
                None,
                seed,
                attempt + 1,
                answer.tokens_in + made.tokens_in,
                answer.tokens_out + made.tokens_out,
            )
            if read_proposed(made.text) is not None:
                break
        return answer

    def _keep(self, study: str, key: str, answer: Answer) -> None:
        """Write an answer; failures only when an answer shows that it is not the service, or the settings."""
        kept = (study, key, answer)
        with self._lock:
            if answer.failure is None:
                self._answered = True
                held, self._without = [*self._without, kept], []
            elif self._answered and not answer.failure.startswith(EXHAUSTED):
                held = [kept]  # a request at fault, of a service that answers others
            else:
                held, self._without = [], [*self._without, kept]
            streak = len(self._without)
        for one in held:
            self._cache.write(*one)
        if streak >= _STREAK:
            raise self._unanswered()

    def _keep_failures(self) -> None:
        """Write the last failures, when all requests are through."""
        if self._without and not self._answered:
            raise self._unanswered()
        for one in self._without:
            self._cache.write(*one)

    def _unanswered(self) -> ServiceError:
        return ServiceError(
            f"instruct member {self._member.name}: {len(self._without)} requests in a row without an answer, "
            f"last: {self._without[-1][2].failure}",
            hint="see whether the service is up and takes such requests (structured, max_images); answers so "
            "far are kept",
        )
