"""The Ray Data pipelines: corpus, clean studies, tokenized shards; no byte depends on the workers."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoray import artifacts
from echoray.config import RunConfig, digest
from echoray.data.batch import SCHEMA_KEY, SHARD_SCHEMA
from echoray.data.deidentify.rules import rules_digest
from echoray.data.leaks import AUDIT_FILE, AUDIT_STEP, audit_record, audit_studies
from echoray.data.ledger import ledger_row, unpacked, write_ledger
from echoray.data.prepare import STEPS, PrepareStudies, deid_key
from echoray.data.sources.index import (
    ARCHIVE,
    CORPUS,
    PACKAGE,
    Header,
    Listing,
    SourceFile,
    StudyFiles,
    group_studies,
    list_source,
    read_header,
)
from echoray.data.sources.samples import package_samples
from echoray.data.split import leaked_patients
from echoray.data.streaming import streamed, streamed_by_actors
from echoray.data.tokens import FORMAT_FILES, TokenizeStudies, study_ranges
from echoray.errors import ArtifactError, InputDataError
from echoray.storage import Store, open_store, store_of
from echoray.types import SPLITS, ArtifactRef, Progress, Rejection

if TYPE_CHECKING:
    import pyarrow as pa

CORPUS_BATCH = 8
TOKENIZE_BATCH = 16
INDEX_BATCH = 64
# Part of each step's plan. Count up when a change of the code changes what the step writes, so that artifacts
# made before it are not taken for what the step would write now.
REVISIONS = {"corpus": 1, "studies": 2, "shards": 2}
# Settings that do not decide what a clean study is.
_LATER: dict[str, Any] = {
    "num_workers": True,
    "vqa_per_study": True,
    "max_length_tokens": True,
    "source": {"phantom"},
}


def make_corpus(run: RunConfig, progress: Progress) -> ArtifactRef:
    """Write the synthetic corpus and the package samples as DICOM (artifact kind "corpus")."""
    source = run.data.source
    samples = package_samples() if source.package_samples else []
    config = {
        "phantom": None if source.phantom is None else source.phantom.model_dump(mode="json"),
        "package_samples": [(one.name, one.size_bytes) for one in samples],
        "language": run.data.language,
        "seed": run.seed,
        "revision": REVISIONS["corpus"],
    }
    ref = artifacts.plan("corpus", run.name, config=config)

    store = store_of(run)
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.clear(store, ref)
    counts, digests = _write_phantom(run, store.at(ref.path), progress)
    for sample in samples:
        name = f"{PACKAGE}/{sample.name}"
        digests[name] = artifacts.write_file(store, ref.path, name, sample.read_bytes())
    if not counts.get("num_studies") and not samples:
        raise InputDataError("the corpus is empty", hint="set data.source.phantom.num_studies above 0")
    counts["package_samples"] = len(samples)
    artifacts.seal(store, ref, config=config, counts=counts, digests=digests)
    return ref


def _write_phantom(
    run: RunConfig, files: Store, progress: Progress
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Write the synthetic studies from the workers straight into ``files``; counts, and sha256 by file."""
    from echoray.data.phantom import StudyRecord, finish_corpus, write_one

    phantom = run.data.source.phantom
    if phantom is None or not phantom.num_studies:
        return {}, {}
    seed, language = run.seed, run.data.language

    def write(row: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="echoray-") as folder:
            record = write_one(int(row["id"]), Path(folder), phantom, seed=seed, language=language)
            digests = artifacts.upload_folder(files, Path(folder), "")
        return {"record": json.dumps(asdict(record)), "digests": json.dumps(digests)}

    records: list[StudyRecord] = []
    digests: dict[str, str | None] = {}
    items = [{"id": index} for index in range(phantom.num_studies)]
    for row in streamed(items, len(items) // CORPUS_BATCH, lambda dataset: dataset.map(write)):
        records.append(StudyRecord(**json.loads(row["record"])))
        digests |= json.loads(row["digests"])
        progress("synthetic studies", len(records), phantom.num_studies)
    report = finish_corpus(files, records)
    digests["truth.jsonl"] = None
    counts = {
        "num_studies": report.num_studies,
        "num_frames": report.num_frames,
        "faults": dict(report.faults),
    }
    return counts, digests


def prepare_studies(run: RunConfig, corpus: ArtifactRef | None, progress: Progress) -> ArtifactRef:
    """Read, filter, de-identify and split every source (artifact kind "studies").

    Raises InputDataError where there is no source, a folder is missing, or nothing is left.
    """
    store = store_of(run)
    key = deid_key(run.data)
    archives = _archives(run)
    config = _studies_config(run, key, archives)
    parents = [corpus] if corpus else []
    ref = artifacts.plan("studies", run.name, config=config, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.clear(store, ref)
    listings = [list_source(store.at(corpus.path), CORPUS), *archives] if corpus else archives
    if not listings:
        raise InputDataError("no source of studies is configured", hint="set data.source.dicom_uris")
    studies = _indexed([file for one in listings for file in one.files], progress)
    rows, rejections, counts = _prepared(run, studies, key, progress)
    _refuse_leaks(rows)
    audit = audit_studies(rows)
    rejections += audit.rejections
    counts.update({f"{AUDIT_STEP}_in": len(rows), f"{AUDIT_STEP}_out": audit.counts["studies"]})
    rows = sorted(
        (one for one in rows if one["study_hash"] not in audit.dropped), key=lambda one: one["study_hash"]
    )
    digests = _write_parts(store, ref, "", rows, run.data.shard_rows)
    record = json.dumps(audit_record(audit, digests), indent=1).encode()
    digests[AUDIT_FILE] = artifacts.write_file(store, ref.path, AUDIT_FILE, record)
    ledger = [
        ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections)
        for step in (*STEPS, AUDIT_STEP)
    ]
    digests |= write_ledger(store, ref.path, ledger, rejections)
    summary = {"studies": len(rows), "splits": dict(Counter(str(one["split"]) for one in rows))}
    artifacts.seal(store, ref, config=config, parents=parents, counts=summary, digests=digests)
    return ref


def _archives(run: RunConfig) -> list[Listing]:
    options = {"endpoint_url": run.storage.endpoint_url, "region": run.storage.region}
    uris = run.data.source.dicom_uris
    return [list_source(open_store(uri, **options), ARCHIVE, number) for number, uri in enumerate(uris)]


def _studies_config(run: RunConfig, key: bytes, archives: list[Listing]) -> dict[str, Any]:
    """Everything that decides what the clean studies are, beside the corpus."""
    return {
        "data": run.data.model_dump(mode="json", exclude=_LATER),
        "archives": [one.digest for one in archives],  # a grown archive is another input
        "key": digest(key.hex())[:16],
        "rules": rules_digest(),
        "seed": run.seed,
        "revision": REVISIONS["studies"],
    }


def _indexed(files: list[SourceFile], progress: Progress) -> list[StudyFiles]:
    """The studies that the files of all sources make up, from their headers."""
    batches = [files[start : start + INDEX_BATCH] for start in range(0, len(files), INDEX_BATCH)]
    headers: list[Header | None] = []

    def read(row: dict[str, Any]) -> dict[str, Any]:
        found = [read_header(file) for file in row["batch"]["files"]]
        return {"headers": json.dumps([one and vars(one) for one in found])}

    items = [{"batch": {"files": batch}} for batch in batches]
    for row in streamed(items, len(items), lambda dataset: dataset.map(read)):
        headers += [None if one is None else Header(**one) for one in json.loads(row["headers"])]
        progress("indexed files", len(headers), len(files))
    return group_studies(files, headers)


def _prepared(
    run: RunConfig, studies: list[StudyFiles], key: bytes, progress: Progress
) -> tuple[list[dict[str, Any]], list[Rejection], Counter[str]]:
    """Rows of clean studies, rejections, and the counts of all steps; InputDataError where no row is left."""
    rows: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    counts: Counter[str] = Counter()
    found = streamed_by_actors(
        [{"study": vars(one)} for one in studies],
        len(studies) // CORPUS_BATCH,
        PrepareStudies,
        (run.data, key, run.seed),
        num_workers=run.data.num_workers,
    )
    for number, row in enumerate(found, start=1):
        rows += row["studies"]
        rejections += unpacked(row["rejections"])
        counts.update(json.loads(row["counts"]))
        progress("de-identified folders", number, len(studies))
    if not rows:
        raise InputDataError(
            f"no study is usable: {len(rejections)} records were rejected, most often for "
            f"{Counter(one.reason for one in rejections).most_common(1)[0][0]}",
            hint="check the studies; each needs ultrasound images and a report",
        )
    return rows, rejections, counts


def _refuse_leaks(rows: Iterable[Mapping[str, Any]]) -> None:
    leaked = leaked_patients((str(row["patient_key"]), str(row["split"])) for row in rows)
    if leaked:
        raise ArtifactError(
            f"{len(leaked)} patients are in more than one split", hint="report this as a defect"
        )


def tokenize(run: RunConfig, studies: ArtifactRef, base: Path, progress: Progress) -> ArtifactRef:
    """Build conversations and tokenize them for the base model in ``base`` (artifact kind "shards")."""
    store = store_of(run)
    config = {
        "vqa_per_study": run.data.vqa_per_study,
        "max_length_tokens": run.data.max_length_tokens,
        "image_size_px": run.data.image_size_px,
        "shard_rows": run.data.shard_rows,
        "tokenizer": digest([(base / name).read_text() for name in FORMAT_FILES if (base / name).exists()]),
        "seed": run.seed,
        "revision": REVISIONS["shards"],
    }
    ref = artifacts.plan("shards", run.name, config=config, parents=[studies])
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.require(store, studies, made_by="echoray data prepare")
    artifacts.clear(store, ref)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    rejections: list[Rejection] = []
    total = 0
    for made in _tokenized(run, store, studies, base, progress):
        total += made["conversations"]
        rejections += unpacked(made["rejections"])
        for row in made["examples"]:
            rows[row.pop("split")].append(row)
    digests: dict[str, str] = {}
    for split, kept in rows.items():
        digests |= _write_parts(store, ref, f"{split}/", kept, run.data.shard_rows)
    kept_count = sum(map(len, rows.values()))
    ledger = ledger_row("tokenize", total, kept_count, rejections)
    digests |= write_ledger(store, ref.path, [ledger], rejections)
    counts = {split: len(kept) for split, kept in rows.items()}
    artifacts.seal(store, ref, config=config, parents=[studies], counts=counts, digests=digests)
    return ref


def _tokenized(
    run: RunConfig, store: Store, studies: ArtifactRef, base: Path, progress: Progress
) -> Iterator[dict[str, Any]]:
    work = list(study_ranges(store, studies, TOKENIZE_BATCH))
    total, done = sum(one["stop"] - one["start"] for one in work), 0
    arguments = (store, base, run.data, run.seed)
    rows = streamed_by_actors(work, len(work), TokenizeStudies, arguments, num_workers=run.data.num_workers)
    for one, row in zip(work, rows, strict=True):
        done += one["stop"] - one["start"]
        progress("tokenized studies", done, total)
        yield row


def _write_parts(
    store: Store, ref: ArtifactRef, prefix: str, rows: list[dict[str, Any]], shard_rows: int
) -> dict[str, str]:
    """Write ``rows`` as Parquet parts whose names begin with ``prefix``; sha256 by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digests = {}
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        table = pa.Table.from_pylist(rows[start : start + shard_rows])
        target = io.BytesIO()
        pq.write_table(_typed(table), target, compression="zstd")
        name = f"{prefix}part-{number:05d}.parquet"
        digests[name] = artifacts.write_file(store, ref.path, name, target.getvalue())
    return digests


def _typed(table: pa.Table) -> pa.Table:
    """Token columns as int32, and the schema version in the metadata."""
    import pyarrow as pa

    for name in ("input_ids", "labels", "grid_thw"):
        if name in table.column_names:
            index = table.column_names.index(name)
            table = table.set_column(index, name, table[name].cast(pa.list_(pa.int32())))
    return table.replace_schema_metadata({SCHEMA_KEY: SHARD_SCHEMA})
