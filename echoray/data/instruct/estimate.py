"""What generating would take: requests, tokens, cost and time, before anything is spent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from echoray.config.instruct import Member, OpenAIMember, RulesMember
from echoray.data.instruct.answers import AnswerCache
from echoray.data.instruct.assignment import Assignment
from echoray.data.instruct.requests import Asked, Request
from echoray.types import Progress

# Of common vocabularies: a CJK character takes about one token, and so do four characters of other text.
# 768 tokens are a picture of 0.6 megapixels to Qwen2-VL, which takes one for each 28 x 28 pixels.
_LATIN_CHARACTERS_PER_TOKEN = 4
_IMAGE_TOKENS = 768
_ITEM_TOKENS = 20  # names and braces around an item


@dataclass(frozen=True)
class Estimate:
    """What one member is going to be asked; tokens are estimates, requests are counted."""

    member: Member
    requests: int
    answered: int  # of the requests, by the cache
    tokens_in: int
    tokens_out: int

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None for a member without prices."""
        if not isinstance(self.member, OpenAIMember):
            return None
        return self.member.cost(self.tokens_in, self.tokens_out)

    def duration_s(self, latency_s: float) -> float | None:
        """Of an endpoint that takes ``latency_s`` for an answer, by its limits; None for other members."""
        if not isinstance(self.member, OpenAIMember):
            return None
        left = self.requests - self.answered
        by_rate = 60 * left / self.member.requests_per_minute if self.member.requests_per_minute else 0.0
        return max(by_rate, left * latency_s / self.member.concurrency)


def estimate(assignment: Assignment, progress: Progress) -> list[Estimate]:
    """Count the requests for each member; nothing is sent."""
    cache = AnswerCache(assignment.store)
    counts: dict[str, Counter[str]] = {one.name: Counter() for one in assignment.config.members}
    studies = 0
    for work in assignment.works:
        for row, requests in assignment.rows(work["path"], pictures=assignment.sees_pictures):
            studies += 1
            progress("counted studies", studies, None)
            known = cache.keys(row["study_hash"]) if requests else frozenset()
            for request in requests:
                asked = assignment.asked(request, row)
                counts[request.member.name] += _of(asked, assignment.config.items_per_request, known)
    return [
        Estimate(one, *(counts[one.name][name] for name in ("requests", "answered", "in", "out")))
        for one in assignment.config.members
    ]


def _of(asked: Asked, num_items: int, known: frozenset[str]) -> Counter[str]:
    request = asked.request
    if isinstance(request.member, RulesMember) or asked.key in known:
        return Counter(requests=1, answered=1)
    sent = sum(num_tokens(one["content"]) for one in asked.messages) + _IMAGE_TOKENS * len(asked.images)
    made = min(request.member.max_tokens, _answer(request, num_items))
    return Counter({"requests": 1, "in": sent, "out": made})


def num_tokens(text: str) -> int:
    """About how many tokens a text takes."""
    wide = sum(one >= "\u2e80" for one in text)
    return wide + (len(text) - wide) // _LATIN_CHARACTERS_PER_TOKEN


def _answer(request: Request, num_items: int) -> int:
    """About how long an answer is: as the exemplar's own items of the form."""
    exemplar = request.template.exemplar(request.study.language)
    shown = [one for one in exemplar.examples if one.form == request.form]
    lengths = [num_tokens(f"{one.prompt}{one.answer}") + _ITEM_TOKENS for one in shown]
    return num_items * sum(lengths) // max(1, len(lengths))
