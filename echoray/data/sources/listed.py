"""Records of sources that are no DICOM archives, on their way to the workers."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from echoray.data.deidentify.keys import keyed_hash
from echoray.data.sources.defects import Defect, first_fatal
from echoray.data.sources.images import decode_image, is_image
from echoray.data.sources.index import SourceFile, StudyFiles
from echoray.storage import Store
from echoray.types import Frame, Rejection

_SCHEME = re.compile(r"[a-zA-Z][\w+.-]+:")


@dataclass(frozen=True)
class Listed:
    """One record: where a user finds it, what is wrong with it, and what the workers get of it."""

    file: str
    row: int | None
    defects: tuple[Defect, ...]
    study: StudyFiles | None  # None for what is said of a table as a whole


@dataclass(frozen=True)
class Place:
    """A source: its store, its kind, its position in the configuration, and the files below it by size."""

    store: Store
    kind: str
    number: int
    sizes: Mapping[str, int]

    def file(self, path: str) -> SourceFile:
        """The source's file at ``path``."""
        return SourceFile(self.store, path, self.kind, self.number, self.sizes[path])

    def identity(self, *parts: str | int) -> str:
        """A name of a record that no other record of any source has; it may name a patient."""
        return json.dumps([self.kind, self.number, *parts])

    def images(self, paths: Sequence[str], base: str, field: str) -> tuple[list[SourceFile], list[Defect]]:
        """The files that ``paths``, relative to the folder ``base``, name; a defect for each that is none."""
        files: list[SourceFile] = []
        defects: list[Defect] = []
        for number, path in enumerate(paths, start=1):
            inside = posixpath.normpath(posixpath.join(base, path.replace("\\", "/")))
            code = _path_defect(path, inside, self.sizes)
            if code is None:
                files.append(self.file(inside))
            else:
                defects.append(Defect(code, field, f"image {number} of {len(paths)}"))
        return files, defects


def _path_defect(path: str, inside: str, there: Mapping[str, int]) -> str | None:
    if path.lower().startswith("data:"):
        return "inline_image"
    if "://" in path and not path.lower().startswith("file:"):
        return "remote_url"
    if inside.startswith(("/", "../")) or inside == ".." or _SCHEME.match(path):
        return "image_outside"
    if not is_image(inside):
        return "not_image"
    return None if inside in there else "missing_image"


def study_files(
    place: Place, identity: str, files: Sequence[SourceFile], defects: Sequence[Defect], record: Any
) -> StudyFiles:
    """What a worker gets: the record's files and content, or only the reason for which it is rejected."""
    fatal = first_fatal(defects)
    given = {"content": record} if fatal is None else {"rejected": [fatal.code, fatal.field, fatal.detail]}
    return StudyFiles(
        identity=identity,
        study_uid=None,
        files=() if fatal else tuple(files),
        num_images=0 if fatal else len(files),
        kind=place.kind,
        record=json.dumps(given),
    )


def content_of_record(files: StudyFiles, key: bytes) -> tuple[dict[str, Any], list[Rejection]]:
    """The record's content, or the rejection that was decided when it was listed."""
    record = json.loads(files.record)
    if "rejected" in record:
        code, field, detail = record["rejected"]
        return {}, [rejection(files, key, Defect(code, field, detail))]
    content: dict[str, Any] = record["content"]
    return content, []


def rejection(files: StudyFiles, key: bytes, defect: Defect) -> Rejection:
    """A record's way into quarantine; fields and positions are told, values never."""
    detail = ": ".join(part for part in (defect.field, defect.detail) if part)
    return Rejection(keyed_hash(key, files.identity), "read", defect.code, detail)


def read_frames(images: Sequence[SourceFile], chosen: Sequence[int]) -> tuple[Frame, ...] | Defect:
    """The frames at the ``chosen`` positions, or the defect of the first that cannot be read."""
    frames = []
    for number in chosen:
        content = images[number].read_bytes()
        pixels = None if content is None else decode_image(content)
        if pixels is None:
            code = "unreadable_file" if content is None else "unreadable_image"
            return Defect(code, "", f"image {number + 1} of {len(images)}")
        frames.append(Frame(np.ascontiguousarray(pixels), cine=number))
    return tuple(frames)
