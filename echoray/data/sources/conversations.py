"""Conversation files (LLaVA/ShareGPT JSON, swift JSONL, OpenAI messages) with their images beside them."""

from __future__ import annotations

import datetime
import posixpath
from collections.abc import Iterator
from typing import Any

from echoray.config import digest
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.sources.defects import Defect
from echoray.data.sources.dialogs import SYSTEM_FIELD, Dialog, Form, parse, task_of
from echoray.data.sources.fields import identifiers, language_of, patient_of, study_date, system_of
from echoray.data.sources.index import StudyFiles
from echoray.data.sources.listed import (
    Listed,
    Place,
    content_of_record,
    read_frames,
    rejection,
    study_files,
)
from echoray.data.sources.rows import Row, json_rows
from echoray.types import Language, Rejection, Study, Turn

CONVERSATIONS = "conversations"
SUFFIXES = (".json", ".jsonl")


def is_conversation_file(path: str) -> bool:
    """Whether the name is a JSON or JSON lines file's."""
    return path.lower().endswith(SUFFIXES)


def list_conversations(place: Place, only: str = "", form: Form | None = None) -> Iterator[Listed]:
    """The records of every conversation file below the source, or of the one named ``only``."""
    for path in sorted(place.sizes):
        if path == only or (not only and is_conversation_file(path)):
            seen: set[str] = set()
            with place.store.open(path) as handle:
                for row in json_rows(handle, path):
                    yield _listed(place, path, row, form, seen)


def _listed(place: Place, path: str, row: Row, form: Form | None, seen: set[str]) -> Listed:
    if row.defect is not None:
        unread = study_files(place, place.identity(path, "row", row.number), (), [row.defect], None)
        return Listed(path, row.number, (row.defect,), unread)
    dialog, defects = parse(row.value, form)
    name = dialog.id or digest(row.value)  # so that a record keeps its identity when others come before it
    files, missing = place.images(dialog.images, posixpath.dirname(path), "images")
    defects += missing
    identity = place.identity(path, "id" if dialog.id else "content", name)
    if name in seen:
        defects.insert(0, Defect("duplicate_id", "id"))
        identity = place.identity(path, "row", row.number)
    seen.add(name)
    # Records that show the same image are of one patient, whatever they do not say.
    patient = patient_of(dialog.fields) or (files[0].name if files else identity)
    study = study_files(place, identity, files, defects, _content(dialog, patient))
    return Listed(path, row.number, tuple(defects), study)


def _content(dialog: Dialog, patient: str) -> dict[str, Any]:
    text = "\n".join(part for turn in dialog.turns for part in turn)
    tasks = dialog.tasks or [task_of(question) for question, _ in dialog.turns]
    return {
        "turns": [[task, *turn] for task, turn in zip(tasks, dialog.turns, strict=True)]
        if len(tasks) == len(dialog.turns)
        else [],
        "patient": patient,
        "system": system_of(dialog.fields.get(SYSTEM_FIELD, ""), text),
        "language": dialog.fields.get("language", ""),
        "identifiers": identifiers(dialog.fields),
        "date": str(study_date(dialog.fields) or ""),
    }


def read_conversation(
    files: StudyFiles, *, key: bytes, language: Language, max_frames: int
) -> tuple[Study | None, list[Rejection]]:
    """A conversation's study, or why there is none; its questions are about all of its images together."""
    content, rejections = content_of_record(files, key)
    if rejections:
        return None, rejections
    if len(files.files) > max_frames:
        counted = f"{len(files.files)} images, {max_frames} allowed"
        return None, [rejection(files, key, Defect("too_many_images", "images", counted))]
    frames = read_frames(files.files, range(len(files.files)))
    if isinstance(frames, Defect):
        return None, [rejection(files, key, frames)]
    study = Study(
        study_hash=keyed_hash(key, files.identity),
        patient_key=keyed_hash(key, content["patient"]),
        system=content["system"],
        language=language_of(content["language"], language),
        frames=frames,
        report=None,
        source=CONVERSATIONS,
        identifiers=tuple(content["identifiers"]),
        turns=tuple(Turn(*one) for one in content["turns"]),
        date=datetime.date.fromisoformat(content["date"]) if content["date"] else None,
    )
    return study, []
