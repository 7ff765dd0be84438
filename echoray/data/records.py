"""What is known of each study after it was prepared, kept or not: the index of a studies artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from echoray import artifacts
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.leaks import AUDIT_STEP
from echoray.data.parts import read_rows, to_parquet
from echoray.data.sources.index import DICOM, StudyFiles
from echoray.storage import Store
from echoray.types import ArtifactRef, Rejection

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_FILE, FILES_FILE = "index.parquet", "files.parquet"
NOT_KEPT = -1
FORGOTTEN = "forgotten"


@dataclass(frozen=True)
class StudyRecord:
    """One study: its keyed names, how many records entered and left each step, and why what left did.

    ``frames`` are the fingerprints of the pictures that are kept. ``fingerprint`` is a keyed hash of what the
    study is made of, empty where the table of files tells.
    """

    study_hash: str
    patient_key: str = ""
    split: str = ""
    frames: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    fingerprint: str = ""

    @property
    def kept(self) -> bool:
        """Whether the study's row is in the artifact."""
        return bool(self.counts.get(f"{AUDIT_STEP}_out"))

    def rejected_for(self, reason: str) -> bool:
        """Whether anything of the study was rejected for ``reason``."""
        return any(one.reason == reason for one in self.rejections)

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> StudyRecord:
        """The record of a worker or of an index."""
        rejections = tuple(Rejection(**one) for one in raw["rejections"])
        return StudyRecord(**{**raw, "frames": tuple(raw["frames"]), "rejections": rejections})


def fingerprint(files: StudyFiles, key: bytes) -> str:
    """A keyed hash of what a table's study is made of; empty for a study that headers make up."""
    if files.kind == DICOM:
        return ""
    content = [files.record, [(file.name, file.size) for file in files.files]]
    return keyed_hash(key, json.dumps(content))


def write_index(
    store: Store,
    ref: ArtifactRef,
    records: Iterable[StudyRecord],
    part_of: Callable[[str], int],
    files: Mapping[str, tuple[int, str]],
) -> dict[str, str]:
    """Write the index: records with the part that each lies in, and size and study by keyed file name.

    The result maps the names of the two files to their sha256.
    """
    rows = [
        {
            **one.to_json(),
            "frames": list(one.frames),
            "counts": json.dumps(dict(one.counts), sort_keys=True),
            "rejections": json.dumps([asdict(why) for why in one.rejections]),
            "part": part_of(one.study_hash) if one.kept else NOT_KEPT,
        }
        for one in sorted(records, key=lambda one: one.study_hash)
    ]
    named = [{"file": name, "size": files[name][0], "study_hash": files[name][1]} for name in sorted(files)]
    contents = {INDEX_FILE: to_parquet(rows, _index_schema()), FILES_FILE: to_parquet(named, _files_schema())}
    return {name: artifacts.write_file(store, ref.path, name, content) for name, content in contents.items()}


@dataclass(frozen=True)
class Index:
    """What a finished studies artifact says of its studies and files."""

    ref: ArtifactRef
    records: Mapping[str, StudyRecord]  # by study hash
    parts: Mapping[str, int]  # by study hash
    files: Mapping[str, tuple[int, str]]  # size and study hash, by keyed file name


def read_index(store: Store, ref: ArtifactRef) -> Index:
    """Read the index of a finished studies artifact."""
    rows = read_rows(store, f"{ref.path}/{INDEX_FILE}")
    parts = {row["study_hash"]: int(row.pop("part")) for row in rows}
    records = (
        StudyRecord.from_json(
            {**row, "counts": json.loads(row["counts"]), "rejections": json.loads(row["rejections"])}
        )
        for row in rows
    )
    files = {
        row["file"]: (row["size"], row["study_hash"]) for row in read_rows(store, f"{ref.path}/{FILES_FILE}")
    }
    return Index(ref, {one.study_hash: one for one in records}, parts, files)


def studies_of_patient(store: Store, ref: ArtifactRef, patient_key: str) -> set[str]:
    """The hashes of a patient's studies that have a row in a finished studies artifact."""
    rows = read_rows(store, f"{ref.path}/{INDEX_FILE}", ["study_hash", "patient_key", "part"])
    return {
        row["study_hash"] for row in rows if row["patient_key"] == patient_key and row["part"] != NOT_KEPT
    }


def _index_schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("study_hash", "patient_key", "split", "counts", "rejections", "fingerprint")
    return pa.schema(
        [*((name, pa.string()) for name in texts), ("frames", pa.list_(pa.string())), ("part", pa.int32())]
    )


def _files_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("file", pa.string()), ("size", pa.int64()), ("study_hash", pa.string())])
