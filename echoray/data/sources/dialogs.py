"""Conversations in the formats of LLaVA/ShareGPT, ms-swift and OpenAI: read, checked, and written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from echoray.data.conversations import RESERVED
from echoray.data.sources.defects import Defect
from echoray.data.sources.fields import field_defects, renamed
from echoray.types import TASKS, Task

Form = Literal["llava", "swift", "openai"]
FORMS: tuple[Form, ...] = get_args(Form)
TAG = "<image>"
SYSTEM_FIELD = "organ_system"  # "system" is the system prompt in some dialects
_TAGS = re.compile(rf"[ \t]*{TAG}[ \t]*")
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_STRUCTURE = frozenset(
    ("conversations", "messages", "system", "history", "query", "response", "image", "images", "tasks")
)
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
# A closed question stays one, whatever it names; what asks for all there is to see is answered by findings.
_ASKS: tuple[tuple[Task, re.Pattern[str]], ...] = (
    (
        "vqa",
        re.compile(r"^(is|are|was|does|do|has|how|which|where)\b|是否|有无|有没有|多大|哪[个侧一]", re.I),
    ),
    ("diagnosis", re.compile(r"diagnos|\bimpression\b|诊断|超声提示|结论", re.I)),
    (
        "report",
        re.compile(
            r"\breports?\b|\bdescri|\bfindings\b|\bsummar|报告|描[述绘]|所见|说明|画面|文字|撰写|记录|摘要|概括|总结"
            r"|解读|解释|[讲叙简概]述|内容|有什么|包含|展示|呈现|显示",
            re.I,
        ),
    ),
)


@dataclass(frozen=True)
class Dialog:
    """A conversation apart from its format; ``turns`` are (question, answer) without image tags."""

    id: str
    images: tuple[str, ...]  # as written
    turns: tuple[tuple[str, str], ...]
    instruction: str = ""  # the system message
    fields: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()  # of each turn, where the record says so


@dataclass(frozen=True)
class _Message:
    role: str
    text: str
    images: tuple[str, ...]
    field: str


def form_of(record: Mapping[str, Any]) -> Form | None:
    """The format that the record's keys show."""
    if isinstance(record.get("conversations"), list):
        return "llava"
    messages = record.get("messages")
    if isinstance(messages, list):
        parts = any(isinstance(one, dict) and isinstance(one.get("content"), list) for one in messages)
        return "openai" if parts else "swift"
    return "swift" if "query" in record and "response" in record else None


def parse(record: Mapping[str, Any], form: Form | None = None) -> tuple[Dialog, list[Defect]]:
    """The conversation of a record and all that is wrong with it; it is usable without a fatal defect."""
    found = form_of(record)
    if found is None:
        return Dialog("", (), ()), [Defect("unknown_format")]
    # Without images, the messages of swift and of OpenAI are the same.
    plain = {found, form} == {"swift", "openai"} and "images" not in record
    if form not in (None, found) and not plain:
        return Dialog("", (), ()), [Defect("wrong_format", "", f"this one is {found}")]
    defects = [Defect("video", name) for name in _OTHER_MEDIA if record.get(name)]
    messages = list(_messages(record, found, defects))
    listed = () if found == "openai" else _listed_images(record, defects)
    images = tuple(one for message in messages for one in message.images) + listed
    defects += _tag_defects(messages, len(listed), optional=found == "swift")
    turns = _turns(messages, defects)
    fields = renamed({key: value for key, value in record.items() if key not in _STRUCTURE})
    defects += field_defects(fields, SYSTEM_FIELD)
    tasks = _tasks(record, len(turns), defects)
    instruction = "\n".join(one.text for one in messages if one.role == "system")
    return Dialog(fields.get("id", ""), images, tuple(turns), instruction, fields, tasks), defects


def task_of(question: str) -> Task:
    """Report, diagnosis or VQA, by the words of the question."""
    return next((task for task, asks in _ASKS if asks.search(question)), "vqa")


def encode(dialog: Dialog, form: Form) -> dict[str, Any]:
    """The dialog as a record of ``form``; all images stand before the first question."""
    user, assistant, system = (
        ("human", "gpt", "system") if form == "llava" else ("user", "assistant", "system")
    )
    said: list[tuple[str, Any]] = [(system, dialog.instruction)] if dialog.instruction else []
    for number, (question, answer) in enumerate(dialog.turns):
        images = dialog.images if number == 0 else ()
        said += [(user, _asked(question, images, form)), (assistant, answer)]
    record: dict[str, Any] = {"id": dialog.id}
    if form == "llava":
        record |= {"image": list(dialog.images)} if dialog.images else {}
        record["conversations"] = [{"from": role, "value": value} for role, value in said]
    else:
        record["messages"] = [{"role": role, "content": value} for role, value in said]
        record |= {"images": list(dialog.images)} if form == "swift" and dialog.images else {}
    record |= {"tasks": list(dialog.tasks)} if dialog.tasks else {}
    return {**dialog.fields, **record}


def _asked(question: str, images: tuple[str, ...], form: Form) -> Any:
    if form == "openai":
        shown = [{"type": "image_url", "image_url": {"url": one}} for one in images]
        return [*shown, {"type": "text", "text": question}]
    return f"{TAG}\n" * len(images) + question


def _messages(record: Mapping[str, Any], form: Form, defects: list[Defect]) -> Iterator[_Message]:
    if form == "swift" and not isinstance(record.get("messages"), list):
        yield from _query_and_response(record, defects)
        return
    key, role_key, text_key = (
        ("conversations", "from", "value") if form == "llava" else ("messages", "role", "content")
    )
    for number, one in enumerate(record[key]):
        place = f"{key}[{number}]"
        if not isinstance(one, dict):
            defects.append(Defect("bad_type", place, "expected an object"))
            continue
        role = _ROLES.get(str(one.get(role_key)))
        if role is None:
            defects.append(Defect("unknown_role", f"{place}.{role_key}"))
            continue
        yield _message(role, one.get(text_key), f"{place}.{text_key}", defects)


def _query_and_response(record: Mapping[str, Any], defects: list[Defect]) -> Iterator[_Message]:
    """swift's older form: {system, history: [[question, answer], ...], query, response}."""
    history = record.get("history") or []
    if not isinstance(history, list) or any(not isinstance(one, list) or len(one) != 2 for one in history):
        defects.append(Defect("bad_type", "history", "expected pairs"))
        history = []
    if record.get("system"):
        yield _message("system", record["system"], "system", defects)
    for number, (question, answer) in enumerate(history):
        yield _message("user", question, f"history[{number}][0]", defects)
        yield _message("assistant", answer, f"history[{number}][1]", defects)
    yield _message("user", record["query"], "query", defects)
    yield _message("assistant", record["response"], "response", defects)


def _message(role: str, content: Any, place: str, defects: list[Defect]) -> _Message:
    if isinstance(content, str):
        return _Message(role, content, (), place)
    if not isinstance(content, list):
        # A message without content is one without text, which is told as such.
        defects += [] if content is None else [Defect("bad_type", place, "expected text")]
        return _Message(role, "", (), place)
    texts: list[str] = []
    images: list[str] = []
    for number, part in enumerate(content):
        _part(part, f"{place}[{number}]", texts, images, defects)
    if images and role != "user":
        defects.append(Defect("image_count", place, "only questions may show images"))
    return _Message(role, "\n".join(texts), tuple(images), place)


def _part(part: Any, place: str, texts: list[str], images: list[str], defects: list[Defect]) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    value = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url" and isinstance(value, dict):
        value = value.get("url")
    if isinstance(kind, str) and ("video" in kind or "audio" in kind):
        defects.append(Defect("video", place))
    elif kind in ("text", "image_url", "image") and isinstance(value, str):
        (texts if kind == "text" else images).append(value)
    else:
        defects.append(Defect("bad_type", place, "expected a text or image_url part"))


def _listed_images(record: Mapping[str, Any], defects: list[Defect]) -> tuple[str, ...]:
    """The paths of the record's own list, which LLaVA calls ``image`` and swift ``images``."""
    name = "image" if "image" in record else "images"
    value = record.get(name) or []
    listed = value if isinstance(value, list) else [value]
    paths = [one.get("path") if isinstance(one, dict) else one for one in listed]
    defects += [
        Defect("bad_type", f"{name}[{number}]", "expected a path")
        for number, path in enumerate(paths)
        if not isinstance(path, str) or not path
    ]
    return tuple(path for path in paths if isinstance(path, str) and path)


def _tag_defects(messages: list[_Message], listed: int, *, optional: bool) -> Iterator[Defect]:
    """``optional``: without any tag, all images belong to the first question."""
    asked = [one for one in messages if one.role == "user"]
    tags = sum(one.text.count(TAG) for one in asked)
    if tags != listed and (tags or not optional):
        yield Defect("image_count", asked[0].field if asked else "", f"{tags} tags, {listed} images")
    for one in messages:
        if any(word in one.text for word in ("<video>", "<audio>")):
            yield Defect("video", one.field)
        if RESERVED.search(one.text) or TAG in _untagged(one.text):
            yield Defect("reserved_token", one.field)


def _turns(messages: list[_Message], defects: list[Defect]) -> list[tuple[str, str]]:
    said = [one for place, one in enumerate(messages) if place or one.role != "system"]
    wanted = ("user", "assistant")
    wrong = next((one for place, one in enumerate(said) if one.role != wanted[place % 2]), None)
    if wrong is not None or not said or len(said) % 2:
        last = said[-1].field if said else ""
        defects.append(Defect("role_order", wrong.field if wrong else last))
        return []
    turns = []
    for question, answer in zip(said[::2], said[1::2], strict=True):
        asked, told = _untagged(question.text), answer.text.strip()
        defects += [] if asked else [Defect("empty_question", question.field)]
        defects += [] if told else [Defect("empty_answer", answer.field)]
        turns.append((asked, told))
    return turns


def _untagged(text: str) -> str:
    return _TAGS.sub(" ", text).strip()


def _tasks(record: Mapping[str, Any], turns: int, defects: list[Defect]) -> tuple[str, ...]:
    given = record.get("tasks")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) != turns or any(one not in TASKS for one in given):
        defects.append(Defect("bad_task", "tasks"))
        return ()
    return tuple(given)
