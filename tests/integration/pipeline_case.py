"""The data steps on a small synthetic corpus, and how tests look at what they made."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pydicom

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.corpus import make_corpus
from echoray.data.ledger import LEDGER_FILE, QUARANTINE_FILE
from echoray.data.shards import tokenize
from echoray.data.studies import prepare_studies
from echoray.model.base import WEIGHTS
from echoray.storage import Store, store_of
from echoray.types import SPLITS, ArtifactRef, Progress

NUM_STUDIES = 21
KEY_VARIABLE, KEY = "ECHORAY_TEST_DEID_KEY", "of one hospital"
PUBLIC_KEY = b"echoray synthetic studies"
CHANGES: dict[str, Any] = {
    "name": "pipeline",
    "data": {
        "source": {
            "phantom": {
                "num_studies": NUM_STUDIES,
                "width": 320,
                "height": 240,
                "patients_with_two_studies_rate": 0.4,
            },
            "package_samples": False,
        },
        "deidentify": {"pixels": False},
        "split": {"train": 0.5, "validation": 0.2, "test": 0.3},
        "image_size_px": 56,
        "part_studies": 4,
        "shard_mb": 0.02,
        "num_workers": 1,
        "vqa_per_study": 2,
    },
}


@dataclass(frozen=True)
class Made:
    """A run and the artifacts that it made."""

    run: RunConfig
    corpus: ArtifactRef
    studies: ArtifactRef
    shards: ArtifactRef

    @property
    def store(self) -> Store:
        return store_of(self.run)

    @property
    def refs(self) -> tuple[ArtifactRef, ...]:
        return self.corpus, self.studies, self.shards


def silent(step: str, done: int, total: int | None) -> None:
    return None


def make(run: RunConfig, progress: Progress = silent) -> Made:
    corpus = make_corpus(run, progress)
    studies = prepare_studies(run, corpus, progress)
    return Made(run, corpus, studies, tokenize(run, studies, WEIGHTS, progress))


def rows_of(store: Store, path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in store.list(path):
        if part.rpartition("/")[2].startswith("part-"):
            with store.open(part) as handle:
                rows += pq.read_table(handle).to_pylist()
    return rows


def ledger_of(store: Store, ref: ArtifactRef) -> dict[str, dict[str, Any]]:
    return {row["step"]: row for row in json.loads(store.read_bytes(f"{ref.path}/{LEDGER_FILE}"))}


def quarantine_of(store: Store, ref: ArtifactRef) -> list[dict[str, str]]:
    if ref.kind == "corpus":
        return []
    with store.open(f"{ref.path}/{QUARANTINE_FILE}") as handle:
        rows: list[dict[str, str]] = pq.read_table(handle).to_pylist()
    return rows


def keyed(key: bytes, value: object) -> str:
    return hmac.new(key, str(value).encode(), hashlib.sha256).hexdigest()


def folder_of(made: Made) -> Path:
    local = made.store.local(made.corpus.path)
    assert local is not None
    return local


def truths(made: Made) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder_of(made) / "truth.jsonl").read_text().splitlines()]


def header(folder: Path) -> pydicom.Dataset:
    """The header of any file of a study that has one."""
    for path in sorted(folder.glob("*.dcm"), reverse=True):
        try:
            return pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
    raise AssertionError(f"{folder}: no readable header")


def digests(store: Store, ref: ArtifactRef) -> dict[str, str]:
    """The manifest's digests, after every file was read and compared with them."""
    artifacts.verify(store, ref)
    return dict(artifacts.require(store, ref, made_by="a test").files)


def assert_same_bytes(made: Made, other: Store) -> None:
    """``other`` holds the same three artifacts, file for file."""
    for ref in made.refs:
        expected, found = digests(made.store, ref), digests(other, ref)
        assert found.keys() == expected.keys()
        assert not {name for name, value in expected.items() if found[name] != value}
    assert len(list(folder_of(made).rglob("*.dcm"))) > 2 * NUM_STUDIES - 3
    assert len([path for path in made.store.list(made.shards.path) if "/part-" in path]) > len(SPLITS)


def archive_run(made: Made, archive: Path, name: str, **data: Any) -> RunConfig:
    """The run with a folder of DICOM studies as its only source, and pixels left alone."""
    source = {"phantom": None, "dicom_uris": [f"file://{archive}"]}
    key = {"key_ref": f"env:{KEY_VARIABLE}", "pixels_cleaned_elsewhere": True}
    return made.run.merged({"name": name, "data": {"source": source, "deidentify": key}}).merged(
        {"data": data}
    )


def copy_studies(made: Made, archive: Path, indices: list[int]) -> None:
    for index in indices:
        # As hospitals nest them.
        shutil.copytree(folder_of(made) / f"study-{index:05d}", archive / f"2024/{index % 2}/{index:05d}")


DRIVER = """
import sys
from echoray.config import RunConfig
from echoray.data.corpus import make_corpus
from echoray.data.shards import tokenize
from echoray.data.studies import prepare_studies
from echoray.model.base import WEIGHTS
from echoray.platform.runtime import ray_session

run, silent = RunConfig.model_validate_json(sys.argv[1]), lambda *_: None
with ray_session(run.cluster):
    tokenize(run, prepare_studies(run, make_corpus(run, silent), silent), WEIGHTS, silent)
"""
