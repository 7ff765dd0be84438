"""Answers of models: the form that they must have, and what becomes an item."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echoray.data.instruct.items import Form, Part
from echoray.errors import StorageError
from echoray.storage import Store
from echoray.types import Report

CACHE = "cache/instruct"
_SPACE = re.compile(r"\s+")


class _Item(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    part: str
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class _Items(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    items: list[_Item] = Field(min_length=1)


@dataclass(frozen=True)
class Proposed:
    """A question and its answer as a generator gives them, before they are checked."""

    part: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Answer:
    """What came of one request; ``failure`` is a reason code where nothing came.

    Tokens are those of all attempts, as the service counted them.
    """

    text: str
    failure: str | None
    seed: int
    attempts: int
    tokens_in: int
    tokens_out: int


def answer_schema(parts: Sequence[Part]) -> dict[str, Any]:
    """The JSON schema of an answer, as structured output wants it (every field required, no others)."""
    fields: dict[str, Any] = {
        "part": {"type": "string", "enum": list(parts)},
        "question": {"type": "string"},
        "answer": {"type": "string"},
    }
    item = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    items = {"type": "array", "items": item}
    return {**item, "properties": {"items": items}, "required": ["items"]}


def read_proposed(text: str) -> list[Proposed] | None:
    """The items in an answer, which may stand in a code fence or behind thoughts; None: there are none."""
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
            found = _Items.model_validate(value)
        except (ValueError, ValidationError, RecursionError):
            start = text.find("{", start + 1)
            continue
        return [Proposed(one.part, one.question.strip(), one.answer.strip()) for one in found.items]
    return None


def refusal(one: Proposed, form: Form, parts: Sequence[Part], report: Report) -> str | None:
    """Why a proposed item is none, as a reason code, or None."""
    if one.part not in parts:
        return "unknown_part"
    if not one.prompt or not one.answer:
        return "empty"
    if form == "closed" and not occurs(one.answer, report):
        return "not_in_report"
    return None


def occurs(answer: str, report: Report) -> bool:
    """Whether the report says the answer word for word; line breaks and runs of spaces do not matter.

    It must not begin or end inside a word or a number: "5 mm" does not occur in "15 mm".
    """
    wanted = _SPACE.sub(" ", answer).strip()
    before = r"(?<![A-Za-z0-9])(?<!\d\.)" if wanted[:1].isascii() and wanted[:1].isalnum() else ""
    after = r"(?![A-Za-z0-9])(?!\.\d)" if wanted[-1:].isascii() and wanted[-1:].isalnum() else ""
    found = re.search(before + re.escape(wanted) + after, _SPACE.sub(" ", report.text))
    return bool(wanted) and found is not None


class AnswerCache:
    """Answers by study and request: one object each, so that none is asked (and paid) for twice."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keys(self, study_hash: str) -> frozenset[str]:
        """The requests about a study that have an answer."""
        names = (path.rpartition("/")[2] for path in self._store.list(f"{CACHE}/{study_hash}"))
        return frozenset(name.removesuffix(".json") for name in names)

    def read(self, study_hash: str, key: str) -> Answer | None:
        """The answer to a request, or None where there is none yet."""
        path = self._path(study_hash, key)
        if not self._store.exists(path):
            return None
        try:
            return Answer(**json.loads(self._store.read_bytes(path)))
        except (ValueError, TypeError):
            raise StorageError(
                f"{self._store.uri(path)}: not an answer", hint="delete this file and run again"
            ) from None

    def write(self, study_hash: str, key: str, answer: Answer) -> None:
        """Keep an answer."""
        content = json.dumps(asdict(answer), ensure_ascii=False).encode()
        self._store.write_bytes(self._path(study_hash, key), content)

    def _path(self, study_hash: str, key: str) -> str:
        return f"{CACHE}/{study_hash}/{key}.json"
