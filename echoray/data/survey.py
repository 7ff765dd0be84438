"""Which studies of the sources are to be made, and which an earlier version of the artifact has already.

Files are compared by keyed name and size, so that nothing but new and changed files is opened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echoray import artifacts
from echoray.config import canonical_json
from echoray.data import leaks
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.records import FORGOTTEN, Index, StudyRecord, fingerprint, read_index
from echoray.data.sources.index import Header, SourceFile, StudyFiles, group_studies, read_header
from echoray.data.streaming import streamed
from echoray.storage import Store
from echoray.types import ArtifactRef, Progress

_BATCH = 64

Reader = Callable[[Sequence[SourceFile]], list["Header | None"]]


@dataclass(frozen=True)
class Survey:
    """``studies`` are to be made; ``reused`` (by study hash) are rows of ``previous``.

    ``files`` gives size and study hash of every file, by the keyed hash of its name.
    """

    studies: tuple[StudyFiles, ...]
    reused: Mapping[str, StudyRecord] = field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    previous: Index | None = None


def survey(
    files: Sequence[SourceFile],
    tables: Sequence[StudyFiles],
    previous: Index | None,
    *,
    key: bytes,
    forgotten: Collection[str],
    read: Reader,
) -> Survey:
    """Tell what is new. ``files`` are grouped by their headers, ``tables`` are studies already.

    A study is made again where a file of it was added, changed or removed, where its patient was forgotten
    (or is so no longer), and where it had given way to a near-identical one.
    """
    hashes = [keyed_hash(key, file.name) for file in files]
    known = previous.files if previous else {}
    old = [known.get(name, (-1, "")) for name in hashes]
    unchanged = [size == file.size for file, (size, _) in zip(files, old, strict=True)]
    fresh = [file for file, same in zip(files, unchanged, strict=True) if not same]
    headers = dict(zip(_names(fresh), read(fresh), strict=True))
    touched = {keyed_hash(key, one.identity) for one in group_studies(fresh, list(headers.values()))}
    present = Counter(study for (_, study), same in zip(old, unchanged, strict=True) if same)
    reused = _unchanged(previous, present, touched, forgotten) if previous else {}
    again = [
        file
        for file, (_, study), same in zip(files, old, unchanged, strict=True)
        if same and study not in reused
    ]
    headers |= dict(zip(_names(again), read(again), strict=True))
    wanted = [file for file in files if file.name in headers]
    studies = group_studies(wanted, [headers[file.name] for file in wanted])
    found = {
        keyed_hash(key, file.name): (file.size, keyed_hash(key, one.identity))
        for one in studies
        for file in one.files
    }
    found |= {
        name: known[name]
        for name, same, (_, study) in zip(hashes, unchanged, old, strict=True)
        if same and study in reused
    }
    given = _given(tables, previous, key, forgotten)
    return Survey((*studies, *given[0]), {**reused, **given[1]}, found, previous)


def _names(files: Iterable[SourceFile]) -> list[str]:
    return [file.name for file in files]


def _unchanged(
    previous: Index, present: Mapping[str, int], touched: Collection[str], forgotten: Collection[str]
) -> dict[str, StudyRecord]:
    """The records of the earlier version whose files are all there, and no others."""
    sizes = Counter(study for _, study in previous.files.values())
    return {
        study: record
        for study, record in previous.records.items()
        if sizes[study]
        and sizes[study] == present.get(study)
        and study not in touched
        and _still_holds(record, forgotten)
    }


def _given(
    tables: Sequence[StudyFiles], previous: Index | None, key: bytes, forgotten: Collection[str]
) -> tuple[list[StudyFiles], dict[str, StudyRecord]]:
    """Of the studies that a table lists: those to be made, and the records of the others."""
    made, reused = [], {}
    for one in tables:
        record = previous.records.get(keyed_hash(key, one.identity)) if previous else None
        if record and record.fingerprint == fingerprint(one, key) and _still_holds(record, forgotten):
            reused[record.study_hash] = record
        else:
            made.append(one)
    return made, reused


def _still_holds(record: StudyRecord, forgotten: Collection[str]) -> bool:
    was_forgotten = record.rejected_for(FORGOTTEN)
    return was_forgotten == (record.patient_key in forgotten) and not record.rejected_for(leaks.REASON)


def find_previous(
    store: Store, ref: ArtifactRef, config: Mapping[str, Any], parents: Sequence[ArtifactRef]
) -> Index | None:
    """The index of the version with the most files that differs from ``ref`` only in what was there."""
    candidates = [
        one
        for one in artifacts.finished(store, "studies")
        if one.ref.name == ref.name
        and one.ref != ref
        and one.parents == tuple(parents)
        and _grows(one.config, json.loads(canonical_json(config)))
    ]
    if not candidates:
        return None
    best = max(candidates, key=lambda one: (int(one.counts["files"]), one.ref.digest))
    return read_index(store, best.ref)


_GROWING = ("archives", FORGOTTEN)


def _grows(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both come from the same rules, and from the same places or more of them."""
    before, after = ({**one["data"]["source"]} for one in (old, new))
    for name, places in before.items():
        if isinstance(places, list) and places != after[name][: len(places)]:
            return False
    scalars = [
        {name: one for name, one in source.items() if not isinstance(one, list)} for source in (before, after)
    ]
    rules = [
        {name: value for name, value in one.items() if name not in (*_GROWING, "data")} for one in (old, new)
    ]
    data = [{name: value for name, value in one["data"].items() if name != "source"} for one in (old, new)]
    return scalars[0] == scalars[1] and rules[0] == rules[1] and data[0] == data[1]


def read_headers(files: Sequence[SourceFile], progress: Progress) -> list[Header | None]:
    """The headers of files, read by Ray Data's workers."""
    batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    headers: list[Header | None] = []

    def read(row: dict[str, Any]) -> dict[str, Any]:
        found = [read_header(file) for file in row["batch"]["files"]]
        return {"headers": json.dumps([one and vars(one) for one in found])}

    if not batches:
        return []
    items = [{"batch": {"files": list(batch)}} for batch in batches]
    for row in streamed(items, len(items), lambda dataset: dataset.map(read)):
        headers += [None if one is None else Header(**one) for one in json.loads(row["headers"])]
        progress("indexed files", len(headers), len(files))
    return headers
