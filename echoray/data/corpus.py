"""The embedded corpus: synthetic studies and the real samples of installed packages, as DICOM files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.sources.index import PACKAGE
from echoray.data.sources.samples import package_samples
from echoray.data.streaming import streamed
from echoray.errors import InputDataError
from echoray.storage import Store, store_of
from echoray.types import ArtifactRef, Progress

# Counted up when a change of the code changes what the step writes, so that what was made before is not taken
# for what the step would write now.
REVISION = 1
_BATCH = 8


def make_corpus(run: RunConfig, progress: Progress) -> ArtifactRef:
    """Write the synthetic corpus and the package samples as DICOM (artifact kind "corpus")."""
    source = run.data.source
    samples = package_samples() if source.package_samples else []
    config = {
        "phantom": None if source.phantom is None else source.phantom.model_dump(mode="json"),
        "package_samples": [(one.name, one.size_bytes) for one in samples],
        "language": run.data.language,
        "seed": run.seed,
        "revision": REVISION,
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
    for row in streamed(items, len(items) // _BATCH, lambda dataset: dataset.map(write)):
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
