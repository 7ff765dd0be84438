"""Clean studies as conversation files for other tools: pictures first, the file that names them last."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.clean import clean_rows, study_of
from echoray.data.conversations import conversations
from echoray.data.sources.dialogs import SYSTEM_FIELD, Dialog, Form, encode
from echoray.errors import UsageError
from echoray.storage import Store, store_of
from echoray.types import ArtifactRef, Progress, Split

_FILES: dict[Form, str] = {"llava": ".json", "swift": ".jsonl", "openai": ".jsonl"}


@dataclass(frozen=True)
class ExportReport:
    """What was written: the conversation file's name, its records, and the different pictures beside it."""

    file: str
    num_conversations: int
    num_images: int


def export_studies(
    run: RunConfig, studies: ArtifactRef, out: Store, form: Form, split: Split | None, progress: Progress
) -> ExportReport:
    """Write the clean studies (of one split, or all) to ``out``: a record per study, a turn per example.

    Pictures are named by their content and the conversation file is written when all of them are there, so
    readers never see half an export. The same studies give the same bytes.
    Raises UsageError where another conversation file of that name is there.
    """
    store = store_of(run)
    artifacts.require(store, studies, made_by="echoray data prepare")
    name = f"{split or 'studies'}{_FILES[form]}"
    rows = (row for row in clean_rows(store, studies) if split in (None, row["split"]))
    pictures = _Pictures(out)
    with tempfile.TemporaryDirectory(prefix="echoray-") as folder:
        target = Path(folder) / name
        with target.open("w", encoding="utf-8") as handle:
            records = (_record(run, row, pictures, form) for row in rows)
            count = _write(handle, _counted(records, progress), as_list=form == "llava")
        if not count:
            raise UsageError(f"no clean study is in {split or 'the run'}", hint="export another split")
        _publish(out, target)
    return ExportReport(name, count, len(pictures.written))


class _Pictures:
    """Writes pictures under the hash of their content, each once."""

    def __init__(self, out: Store) -> None:
        self.out, self.present = out, out.sizes("images")
        self.written: set[str] = set()

    def write(self, content: bytes) -> str:
        """The picture's path relative to the conversation file."""
        path = f"images/{hashlib.sha256(content).hexdigest()[:32]}.png"
        if path not in self.written and self.present.get(path) != len(content):
            self.out.write_bytes(path, content)
        self.written.add(path)
        return path


def _record(run: RunConfig, row: dict[str, Any], pictures: _Pictures, form: Form) -> dict[str, Any]:
    study = study_of(row)
    made = conversations(study, vqa_per_study=run.data.vqa_per_study, seed=run.seed)
    fields = {"patient_id": study.patient_key, "language": study.language, SYSTEM_FIELD: made[0].system}
    dialog = Dialog(
        id=study.study_hash,
        images=tuple(pictures.write(content) for content in row["images"]),
        turns=tuple((one.prompt, one.answer) for one in made),
        fields=fields,
        tasks=tuple(one.task for one in made),
    )
    return encode(dialog, form)


def _counted(records: Iterable[dict[str, Any]], progress: Progress) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records, start=1):
        yield record
        progress("exported studies", number, None)


def _write(handle: IO[str], records: Iterable[dict[str, Any]], *, as_list: bool) -> int:
    """Write one record a line, or a JSON list with one element a line; how many there were."""
    count = 0
    for count, record in enumerate(records, start=1):
        if as_list:
            handle.write("[\n" if count == 1 else ",\n")
        elif count > 1:
            handle.write("\n")
        handle.write(json.dumps(record, ensure_ascii=False))
    handle.write("\n]\n" if as_list else "\n")
    return count


def _publish(out: Store, file: Path) -> None:
    if out.exists(file.name):
        with file.open("rb") as handle:
            own = hashlib.file_digest(handle, "sha256").hexdigest()
        if artifacts.sha256_of(out, file.name) != own:
            raise UsageError(
                f"{out.uri(file.name)}: another file is there", hint="delete it, or name another folder"
            )
        return
    out.upload(file, file.name)
