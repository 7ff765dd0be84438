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
from echoray.data.ledger import ledger_row, write_ledger
from echoray.data.prepare import STEPS, PrepareFolders, deid_key
from echoray.data.sources.dicom import StudyFiles, list_studies, package_samples
from echoray.data.split import leaked_patients
from echoray.data.streaming import streamed
from echoray.data.tokens import FORMAT_FILES, TokenizeStudies, study_ranges
from echoray.errors import ArtifactError, InputDataError
from echoray.storage import Store, open_store, store_of
from echoray.types import SPLITS, ArtifactRef, Progress, Rejection

if TYPE_CHECKING:
    import pyarrow as pa

CORPUS_BATCH = 8
TOKENIZE_BATCH = 16
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
    config = {
        "phantom": None if source.phantom is None else source.phantom.model_dump(mode="json"),
        "package_samples": source.package_samples,
        "language": run.data.language,
        "seed": run.seed,
    }
    ref = artifacts.plan("corpus", run.name, config=config)

    store = store_of(run)
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.clear(store, ref)
    files = store.at(ref.path)
    counts, digests = _write_phantom(run, files, progress)
    samples = package_samples() if source.package_samples else []
    for path in samples:
        # One folder each: they are unrelated studies that share example UIDs.
        files.upload(path, f"package-samples/{path.stem}/{path.name}")
    if not counts.get("num_studies") and not samples:
        raise InputDataError("the corpus is empty", hint="set data.source.phantom.num_studies above 0")
    counts["package_samples"] = len(samples)
    artifacts.seal(store, ref, config=config, counts=counts, digests=digests)
    return ref


def _write_phantom(run: RunConfig, files: Store, progress: Progress) -> tuple[dict[str, Any], dict[str, str]]:
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
    digests: dict[str, str] = {}
    items = [{"id": index} for index in range(phantom.num_studies)]
    for row in streamed(items, len(items) // CORPUS_BATCH, lambda dataset: dataset.map(write)):
        records.append(StudyRecord(**json.loads(row["record"])))
        digests |= json.loads(row["digests"])
        progress("synthetic studies", len(records), phantom.num_studies)
    report = finish_corpus(files, records)
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
    config = {
        "data": run.data.model_dump(mode="json", exclude=_LATER),
        "key": digest(key.hex())[:16],
        "seed": run.seed,
    }
    parents = [corpus] if corpus else []
    ref = artifacts.plan("studies", run.name, config=config, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.clear(store, ref)
    folders = _folders(run, store, corpus)
    rows: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    counts: Counter[str] = Counter()
    for number, row in enumerate(_prepared(run, folders, key), start=1):
        rows += row["studies"]
        rejections += [Rejection(**one) for one in json.loads(row["rejections"])]
        counts.update(json.loads(row["counts"]))
        progress("de-identified folders", number, len(folders))
    if not rows:
        raise InputDataError(
            f"no study is usable: {len(rejections)} records were rejected, most often for "
            f"{Counter(one.reason for one in rejections).most_common(1)[0][0]}",
            hint="check the studies; each needs ultrasound images and a report",
        )
    _refuse_leaks(rows)
    rows.sort(key=lambda one: str(one["study_hash"]))
    _write_parts(store, ref.path, rows, run.data.shard_rows)
    ledger = [ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections) for step in STEPS]
    write_ledger(store, ref.path, ledger, rejections)
    summary = {"studies": len(rows), "splits": dict(Counter(str(one["split"]) for one in rows))}
    artifacts.seal(store, ref, config=config, parents=parents, counts=summary)
    return ref


def _folders(run: RunConfig, store: Store, corpus: ArtifactRef | None) -> list[StudyFiles]:
    sources = [(store.at(corpus.path), "corpus")] if corpus else []
    for uri in run.data.source.dicom_uris:
        options = {"endpoint_url": run.storage.endpoint_url, "region": run.storage.region}
        sources.append((open_store(uri, **options), "dicom"))
    if not sources:
        raise InputDataError("no source of studies is configured", hint="set data.source.dicom_uris")
    return [folder for source, name in sources for folder in list_studies(source, name)]


def _prepared(run: RunConfig, folders: list[StudyFiles], key: bytes) -> Iterator[dict[str, Any]]:
    from ray.data import ActorPoolStrategy

    return streamed(
        [{"folder": vars(folder)} for folder in folders],
        len(folders) // CORPUS_BATCH,
        lambda dataset: dataset.map(
            PrepareFolders,
            fn_constructor_args=(run.data, key, run.seed),
            compute=ActorPoolStrategy(size=run.data.num_workers),
            num_cpus=1,
        ),
    )


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
        rejections += [Rejection(**one) for one in json.loads(made["rejections"])]
        for row in made["examples"]:
            rows[row.pop("split")].append(row)
    for split, kept in rows.items():
        _write_parts(store, f"{ref.path}/{split}", kept, run.data.shard_rows)
    kept_count = sum(map(len, rows.values()))
    write_ledger(store, ref.path, [ledger_row("tokenize", total, kept_count, rejections)], rejections)
    counts = {split: len(kept) for split, kept in rows.items()}
    artifacts.seal(store, ref, config=config, parents=[studies], counts=counts)
    return ref


def _tokenized(
    run: RunConfig, store: Store, studies: ArtifactRef, base: Path, progress: Progress
) -> Iterator[dict[str, Any]]:
    from ray.data import ActorPoolStrategy

    work = list(study_ranges(store, studies, TOKENIZE_BATCH))
    total, done = sum(one["stop"] - one["start"] for one in work), 0
    rows = streamed(
        work,
        len(work),
        lambda dataset: dataset.map(
            TokenizeStudies,
            fn_constructor_args=(store, base, run.data, run.seed),
            compute=ActorPoolStrategy(size=run.data.num_workers),
            num_cpus=1,
        ),
    )
    for one, row in zip(work, rows, strict=True):
        done += one["stop"] - one["start"]
        progress("tokenized studies", done, total)
        yield row


def _write_parts(store: Store, path: str, rows: list[dict[str, Any]], shard_rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, start in enumerate(range(0, len(rows), shard_rows)):
        table = pa.Table.from_pylist(rows[start : start + shard_rows])
        target = io.BytesIO()
        pq.write_table(_typed(table), target, compression="zstd")
        store.write_bytes(f"{path}/part-{number:05d}.parquet", target.getvalue())


def _typed(table: pa.Table) -> pa.Table:
    """Token columns as int32, and the schema version in the metadata."""
    import pyarrow as pa

    for name in ("input_ids", "labels", "grid_thw"):
        if name in table.column_names:
            index = table.column_names.index(name)
            table = table.set_column(index, name, table[name].cast(pa.list_(pa.int32())))
    return table.replace_schema_metadata({SCHEMA_KEY: SHARD_SCHEMA})
