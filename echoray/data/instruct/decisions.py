"""Experts' decisions about items: one object each in the store, so that a killed server loses none.

``reviews/<sample>/<reviewer>/<item>/<number>.json``: the highest number is what the reviewer says now, the
others are what was said before. A number is taken by a conditional write, so that neither two reviewers nor
two windows of one overwrite each other.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from echoray.data.conversations import RESERVED
from echoray.data.instruct.prescreen import REASONS, Reason
from echoray.data.instruct.wording import identifying_category
from echoray.errors import UsageError
from echoray.storage import Store

Choice = Literal["accept", "reject", "edit", "withdraw"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
# What an expert finds wrong; "unsure" is a reason too: what an expert cannot confirm is not trained on.
REVIEW_REASONS: tuple[Reason, ...] = (
    "contradicts_report", "not_supported", "unsafe_advice", "off_topic", "not_a_question", "wrong_language",
    "malformed", "identifying_text", "unsure",
)  # fmt: skip
ROOT = "reviews"
MAX_TEXT = 8000
_REVIEWER = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_ITEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class DecisionError(UsageError):
    """A decision that cannot be taken as it is; the message says why (HTTP 422)."""


@dataclass(frozen=True)
class Decision:
    """What one reviewer says about one item; an edit has the new texts, a rejection its reason."""

    item_id: str
    reviewer: str
    choice: Choice
    reason: Reason | None = None
    prompt: str | None = None
    answer: str | None = None
    at: str = ""  # UTC, ISO 8601


def checked_decision(values: Mapping[str, Any]) -> Decision:
    """The decision that ``values`` describes; DecisionError says what is wrong with it.

    An edit passes the rules for identifying text again. No message repeats what was written.
    """
    names = set(Decision.__dataclass_fields__)
    texts = {name: values.get(name) for name in names}
    if any(not isinstance(one, str | None) for one in texts.values()):
        raise DecisionError("every field is a text or null", hint="send the fields that the page sends")
    choice, reason = texts["choice"], texts["reason"]
    if choice not in CHOICES:
        raise DecisionError("unknown choice", hint=f"one of {', '.join(CHOICES)}")
    reviewer = checked_reviewer(texts["reviewer"] or "")
    if not _ITEM.fullmatch(texts["item_id"] or ""):
        raise DecisionError("not the id of an item", hint="take the ids of the sample")
    if (choice == "reject") != (reason is not None) or (reason is not None and reason not in REVIEW_REASONS):
        raise DecisionError("a rejection, and only that, has a reason", hint=", ".join(REVIEW_REASONS))
    edited = {name: (texts[name] or "").strip() for name in ("prompt", "answer")} if choice == "edit" else {}
    for name, text in edited.items():
        _check_text(name, text)
    return Decision(
        str(texts["item_id"]),
        reviewer,
        choice,
        reason,
        edited.get("prompt"),
        edited.get("answer"),
        texts["at"] or "",
    )


def checked_reviewer(name: str) -> str:
    """A reviewer's name as it is used in paths; DecisionError where it is none."""
    if not _REVIEWER.fullmatch(name):
        raise DecisionError(
            "not a reviewer's name", hint="1 to 32 of a-z, 0-9, dot, hyphen and underscore, e.g. reader-1"
        )
    return name


def _check_text(name: str, text: str) -> None:
    if not any(one.isalnum() for one in text) or len(text) > MAX_TEXT:
        raise DecisionError(f"the edited {name} is empty or too long", hint=f"1 to {MAX_TEXT} characters")
    if RESERVED.search(text):
        raise DecisionError(f"the edited {name} holds a token of the chat format", hint="take <|...|> out")
    category = identifying_category(text)
    if category is not None:
        raise DecisionError(
            f"the edited {name} may identify somebody ({category})",
            hint="take out names, numbers, dates, ages, places and institutions",
        )


class DecisionLog:
    """The decisions about one sample."""

    def __init__(self, store: Store, sample: str) -> None:
        self._store, self._folder = store, f"{ROOT}/{sample}"
        self._known: dict[str, Decision] = {}  # an object is written once, so it is read once

    def append(self, decision: Decision) -> Decision:
        """Write a decision, durable when this returns, with the time of now where it has none."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        values = asdict(decision) | {"at": decision.at or now}
        content = json.dumps(values, ensure_ascii=False).encode()
        folder = f"{self._folder}/{decision.reviewer}/{decision.item_id}"
        number = len(self._store.list(folder))
        while not self._store.write_bytes(f"{folder}/{number:06d}.json", content, if_absent=True):
            number += 1
        return Decision(**values)

    def current(self) -> list[Decision]:
        """What each reviewer says now of each item, withdrawn ones left out; by item, then reviewer."""
        latest: dict[tuple[str, str], str] = {}
        for path in self._store.list(self._folder):  # sorted: the last of a folder is its highest number
            reviewer, item_id, _ = path.removeprefix(f"{self._folder}/").split("/")
            latest[item_id, reviewer] = path
        found = (self._read(latest[key]) for key in sorted(latest))
        return [one for one in found if one.choice != "withdraw"]

    def history(self, reviewer: str, item_id: str) -> list[Decision]:
        """Everything that a reviewer said about an item, the first first."""
        paths = self._store.list(f"{self._folder}/{reviewer}/{item_id}")
        return [self._read(path) for path in paths]

    def _read(self, path: str) -> Decision:
        if path not in self._known:
            self._known[path] = Decision(**json.loads(self._store.read_bytes(path)))
        return self._known[path]


@dataclass(frozen=True)
class Outcome:
    """What follows from all decisions about one item."""

    item_id: str
    choice: Choice  # accept, reject or edit
    reason: Reason | None
    prompt: str | None
    answer: str | None
    num_reviewers: int
    agreed: bool


def outcomes(decisions: Iterable[Decision]) -> dict[str, Outcome]:
    """By item: kept if more reviewers keep (accept or edit) than reject it; a tie is a rejection.

    A kept item is an edit where any reviewer edited it, the latest edit holds (by time, then name).
    """
    by_item: dict[str, list[Decision]] = {}
    for one in decisions:
        by_item.setdefault(one.item_id, []).append(one)
    return {item_id: _outcome(item_id, by_item[item_id]) for item_id in sorted(by_item)}


def _outcome(item_id: str, given: list[Decision]) -> Outcome:
    against = [one for one in given if one.choice == "reject"]
    agreed = len({one.choice == "reject" for one in given}) == 1
    if 2 * len(against) >= len(given):
        counts = Counter(one.reason for one in against)
        reason = max(REASONS, key=lambda one: (counts[one], -REASONS.index(one)))
        return Outcome(item_id, "reject", reason, None, None, len(given), agreed)
    edits = sorted((one for one in given if one.choice == "edit"), key=lambda one: (one.at, one.reviewer))
    if not edits:
        return Outcome(item_id, "accept", None, None, None, len(given), agreed)
    return Outcome(item_id, "edit", None, edits[-1].prompt, edits[-1].answer, len(given), agreed)
