"""Pre-screening by a pool of judges: each gives a verdict with a reason, the majority decides, all are kept.

She et al., EchoVLM, section 3.1 and appendix A: the open-ended subset is evaluated by a pool of models before
experts see a sample. Closed items (answers taken from the report word for word) are not a matter of opinion:
they are not put to the pool, only checked for text that identifies somebody and for malformed text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from echoray.data.instruct.items import Form, Item
from echoray.types import Report

Reason = Literal[
    "identifying_text",  # names somebody, or could
    "malformed",  # empty, too long, reserved tokens, broken characters
    "wrong_language",  # not the study's language
    "contradicts_report",  # says what the report denies, or otherwise than the report
    "not_supported",  # says what the report does not say
    "unsafe_advice",  # doses, prescriptions, certainty that no picture gives
    "off_topic",  # not about the examination, or a refusal to answer
    "not_a_question",  # the prompt asks for nothing
    "copies_question",  # the answer repeats the question
    "unsure",  # no judge came to a verdict
]
REASONS: tuple[Reason, ...] = get_args(Reason)  # the earlier ones count first where votes are even


@dataclass(frozen=True)
class Case:
    """An item with the clean report that it was made from."""

    item: Item
    report: Report


@dataclass(frozen=True)
class Verdict:
    """One judge's vote; ``accepted`` is None where it abstains (no valid verdict came)."""

    judge: str
    accepted: bool | None
    reason: Reason | None = None  # of a rejection
    detail: str = ""  # at most some words; it is kept beside the item and nowhere else


class Judge(Protocol):
    """A member of the pool.

    ``veto``: its rejection stands. A rule judge looks at one subject and finds a defect or none, so those who
    looked elsewhere must not outvote it; opinions, such as a language model's, are counted.
    """

    @property
    def name(self) -> str:
        """How its votes are signed."""

    @property
    def veto(self) -> bool:
        """Whether its rejection needs no majority."""

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of items that it is asked about."""

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, in order."""


Message = dict[str, str]  # {"role": "system" or "user", "content": ...}


class Completer(Protocol):
    """Sends messages about a study to a language model; raises where the service is not to be had."""

    async def __call__(self, study_hash: str, messages: Sequence[Message], seed: int) -> str:
        """The answer's text; empty where the service refuses this one request."""


@dataclass(frozen=True)
class Screened:
    """An item with its verdicts and what follows from them."""

    item: Item
    verdicts: tuple[Verdict, ...]
    accepted: bool
    reason: Reason | None


def screen(cases: Sequence[Case], judges: Sequence[Judge]) -> list[Screened]:
    """Have every judge look at the cases of its forms, and decide; in the order of ``cases``."""
    votes: list[list[Verdict]] = [[] for _ in cases]
    for judge in judges:
        asked = [place for place, one in enumerate(cases) if one.item.form in judge.forms]
        verdicts = judge.judge([cases[place] for place in asked])
        for place, verdict in zip(asked, verdicts, strict=True):
            votes[place].append(verdict)
    vetoes = frozenset(one.name for one in judges if one.veto)
    decided = (decide(one, vetoes) for one in votes)
    return [
        Screened(case.item, tuple(given), *result)
        for case, given, result in zip(cases, votes, decided, strict=True)
    ]


def decide(verdicts: Sequence[Verdict], vetoes: frozenset[str] = frozenset()) -> tuple[bool, Reason | None]:
    """Accepted or not, and the reason of a rejection.

    A rejection by one of ``vetoes`` stands. Else more accepting than rejecting votes are needed: a tie is a
    rejection, abstentions do not count, and where all abstain the item is rejected as "unsure". An item that
    no judge was asked about passes.
    """
    against = [one for one in verdicts if one.accepted is False]
    standing = [one for one in against if one.judge in vetoes]
    num_for = sum(one.accepted is True for one in verdicts)
    if not standing and num_for > len(against):
        return True, None
    if not against:
        return (False, "unsure") if verdicts else (True, None)
    return False, _most_given(standing or against)


def _most_given(against: Sequence[Verdict]) -> Reason:
    counts = Counter(one.reason or "unsure" for one in against)
    return max(REASONS, key=lambda reason: (counts[reason], -REASONS.index(reason)))
