"""From every source to clean studies, written by the workers; no byte depends on how many there are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from echoray import artifacts
from echoray.config import RunConfig, digest
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.deidentify.rules import rules_digest
from echoray.data.forgotten import forgotten_patients
from echoray.data.leaks import AUDIT_FILE, AUDIT_STEP, REASON, audit_record, audit_studies
from echoray.data.ledger import ledger_row, write_ledger
from echoray.data.parts import forget_progress, made_parts, part_name, read_rows, to_parquet
from echoray.data.prepare import STEPS, WriteStudies, deid_key, study_schema
from echoray.data.records import FORGOTTEN, StudyRecord, write_index
from echoray.data.sources.dicomweb import NOT_IN_PLANS, list_dicomweb
from echoray.data.sources.index import ARCHIVE, CORPUS, Listing, list_source
from echoray.data.sources.tables import TableListing, list_tables
from echoray.data.survey import Survey, find_previous, read_headers, survey
from echoray.errors import InputDataError
from echoray.storage import Store, store_at, store_of
from echoray.types import ArtifactRef, Progress, Rejection

REVISION = 5  # see corpus.REVISION
_HASH_BITS = 32
# Settings that do not decide what a clean study is.
_LATER: dict[str, Any] = {
    "num_workers": True,
    "vqa_per_study": True,
    "max_length_tokens": True,
    "shard_mb": True,
    "dedup": True,
    "source": {"phantom": True, "dicomweb": {"__all__": NOT_IN_PLANS}},
}


def prepare_studies(run: RunConfig, corpus: ArtifactRef | None, progress: Progress) -> ArtifactRef:
    """Read, filter, de-identify and split every source (artifact kind "studies").

    What an earlier version has of unchanged studies is taken over; what an interrupted attempt wrote is kept.
    Raises InputDataError where there is no source, a folder is missing, or nothing is left.
    """
    store, key = store_of(run), deid_key(run.data)
    archives, tables, forgotten = _archives(run), list_tables(run), forgotten_patients(store)
    config = _studies_config(run, key, [*archives, *tables], forgotten)
    parents = [corpus] if corpus else []
    ref = artifacts.plan("studies", run.name, config=config, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    listings = [list_source(store.at(corpus.path), CORPUS), *archives] if corpus else archives
    if not listings and not tables:
        raise InputDataError(
            "no source of studies is configured", hint="set data.source.dicom_uris or dicomweb"
        )
    found = survey(
        [file for one in listings for file in one.files],
        [study for one in tables for study in one.studies],
        find_previous(store, ref, config, parents),
        key=key,
        forgotten=forgotten,
        read=partial(read_headers, progress=progress),
    )
    digests, counts = _written(run, store, ref, found, key, forgotten, progress)
    artifacts.seal(store, ref, config=config, parents=parents, counts=counts, digests=digests)
    forget_progress(store, ref)
    return ref


def _archives(run: RunConfig) -> list[Listing]:
    source = run.data.source
    folders = [list_source(store_at(run, uri), ARCHIVE, n) for n, uri in enumerate(source.dicom_uris)]
    return folders + [list_dicomweb(one, number) for number, one in enumerate(source.dicomweb)]


def _studies_config(
    run: RunConfig, key: bytes, archives: list[Listing | TableListing], forgotten: frozenset[str]
) -> dict[str, Any]:
    """Everything that decides what the clean studies are, beside the corpus."""
    return {
        "data": run.data.model_dump(mode="json", exclude=_LATER),
        "archives": [one.digest for one in archives],  # a grown archive is another input
        "key": digest(key.hex())[:16],
        "rules": rules_digest(),
        "seed": run.seed,
        FORGOTTEN: digest(sorted(forgotten)) if forgotten else None,
        "revision": REVISION,
    }


def _written(
    run: RunConfig,
    store: Store,
    ref: ArtifactRef,
    found: Survey,
    key: bytes,
    forgotten: frozenset[str],
    progress: Progress,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Have the parts written, drop what leaks, write index and ledger; sha256 by file, and a summary."""
    total = len(found.studies) + len(found.reused)
    layout = Layout.of(total, run.data.part_studies)
    arguments = (store, ref, run.data, key, run.seed, forgotten)
    works = plan_works(found, key, layout)
    digests: dict[str, str] = {}
    records: dict[str, StudyRecord] = {}
    for part in made_parts(store, ref, works, WriteStudies, arguments, num_workers=run.data.num_workers):
        digests |= part.files
        made = (StudyRecord.from_json(one) for one in part.summary["records"])
        records |= {one.study_hash: one for one in made}
        progress("de-identified studies", len(records), total)
    _refuse_empty(store, ref, records.values())
    audit = audit_studies(_to_audit(one) for one in records.values() if one.counts.get("studies_out"))
    records = {name: _after_audit(one, name in audit.dropped) for name, one in records.items()}
    digests |= _without(store, ref, audit.dropped, layout)
    content = json.dumps(audit_record(audit, digests), indent=1).encode()
    digests[AUDIT_FILE] = artifacts.write_file(store, ref.path, AUDIT_FILE, content)
    digests |= write_index(store, ref, records.values(), layout.number, found.files)
    digests |= _write_ledger(store, ref, records.values())
    return digests, _summary(records.values(), found)


@dataclass(frozen=True)
class Layout:
    """Which part a study lies in: its hash's first ``bits`` bits, so that new studies move no others."""

    bits: int

    @staticmethod
    def of(num_studies: int, part_studies: int) -> Layout:
        """As many parts, a power of two, as make ``part_studies`` studies in one, or fewer."""
        return Layout(max(0, -(-num_studies // part_studies) - 1).bit_length())

    def number(self, study_hash: str) -> int:
        """The number of the study's part."""
        return int(study_hash[: _HASH_BITS // 4], 16) >> (_HASH_BITS - self.bits)


def plan_works(found: Survey, key: bytes, layout: Layout) -> list[dict[str, Any]]:
    """What ``WriteStudies`` is to do for each part.

    {number, studies: to be made, records: of those taken over (JSON), reused: {file: study hashes} of their
    rows (JSON)}
    """
    works: dict[int, dict[str, Any]] = {}

    def work(study_hash: str) -> dict[str, Any]:
        number = layout.number(study_hash)
        return works.setdefault(number, {"number": number, "studies": [], "records": [], "reused": {}})

    for study_hash, files in sorted((keyed_hash(key, one.identity), one) for one in found.studies):
        work(study_hash)["studies"].append(vars(files))
    for study_hash, record in sorted(found.reused.items()):
        work(study_hash)["records"].append(record.to_json())
        if record.kept and found.previous is not None:
            path = f"{found.previous.ref.path}/{part_name(found.previous.parts[study_hash])}"
            work(study_hash)["reused"].setdefault(path, []).append(study_hash)
    # As text: Ray Data's tables would fill dictionaries up with each other's keys.
    return [
        {**works[number], **{name: json.dumps(works[number][name]) for name in ("records", "reused")}}
        for number in sorted(works)
    ]


def _refuse_empty(store: Store, ref: ArtifactRef, records: Iterable[StudyRecord]) -> None:
    if any(one.counts.get("studies_out") for one in records):
        return
    forget_progress(store, ref)
    reasons = Counter(why.reason for one in records for why in one.rejections)
    raise InputDataError(
        f"no study is usable: {reasons.total()} records were rejected, most often for "
        f"{reasons.most_common(1)[0][0]}",
        hint="check the studies; each needs ultrasound images and a report",
    )


def _to_audit(record: StudyRecord) -> dict[str, Any]:
    return {**vars(record), "fingerprints": [bytes.fromhex(one) for one in record.frames]}


def _after_audit(record: StudyRecord, leaks: bool) -> StudyRecord:
    """The record with the last step in it."""
    entered = record.counts.get("studies_out", 0)
    counts = {**record.counts, f"{AUDIT_STEP}_in": entered, f"{AUDIT_STEP}_out": 0 if leaks else entered}
    if not leaks:
        return replace(record, counts=counts)
    why = Rejection(record.study_hash, AUDIT_STEP, REASON)
    return replace(record, counts=counts, rejections=(*record.rejections, why), frames=())


def _without(store: Store, ref: ArtifactRef, studies: frozenset[str], layout: Layout) -> dict[str, str]:
    """Write the parts that hold ``studies`` again, without them; sha256 by name."""
    digests = {}
    for name in sorted({part_name(layout.number(one)) for one in studies}):
        rows = [one for one in read_rows(store, f"{ref.path}/{name}") if one["study_hash"] not in studies]
        digests[name] = artifacts.write_file(store, ref.path, name, to_parquet(rows, study_schema()))
    return digests


def _write_ledger(store: Store, ref: ArtifactRef, records: Iterable[StudyRecord]) -> dict[str, str]:
    counts: Counter[str] = Counter()
    rejections: list[Rejection] = []
    for one in records:
        counts.update(one.counts)
        rejections += one.rejections
    ledger = [ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections) for step in STEPS]
    return write_ledger(store, ref.path, ledger, rejections)


def _summary(records: Iterable[StudyRecord], found: Survey) -> dict[str, Any]:
    splits = Counter(one.split for one in records if one.kept)
    counts: dict[str, Any] = {
        "studies": splits.total(),
        "splits": dict(sorted(splits.items())),
        "files": len(found.files),
    }
    if found.previous is not None:
        counts["since"] = {"studies": found.previous.ref.path, "taken_over": len(found.reused)}
    return counts
