"""A studies artifact over time: it grows, forgets, is interrupted and loses workers, and no byte shows it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data import studies
from echoray.data.corpus import make_corpus
from echoray.data.prepare import WriteStudies
from echoray.data.records import StudyRecord, read_index
from echoray.data.sources.index import StudyFiles
from echoray.data.studies import prepare_studies
from echoray.platform.forget import forget, purge
from echoray.storage import Store, store_of
from echoray.types import ArtifactRef
from tests.integration.pipeline_case import (
    KEY,
    KEY_VARIABLE,
    PUBLIC_KEY,
    Made,
    archive_run,
    copy_studies,
    digests,
    folder_of,
    header,
    keyed,
    ledger_of,
    make,
    rows_of,
    silent,
    truths,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def at(run: RunConfig, workspace: Path) -> RunConfig:
    return run.merged({"workspace": str(workspace)})


def sound(made: Made) -> list[int]:
    return [truth["index"] for truth in truths(made) if truth["fault"] is None]


def prepared(run: RunConfig) -> tuple[Store, ArtifactRef]:
    return store_of(run), prepare_studies(run, None, silent)


def test_a_version_of_a_changed_archive_is_the_one_made_from_nothing(made: Made, tmp_path: Path) -> None:
    """Studies added, changed, removed and broken: only they are opened, and every byte is the same."""
    archive, chosen = tmp_path / "archive", sound(made)[:9]
    copy_studies(made, archive, chosen[:7])
    grown = at(archive_run(made, archive, "grown"), tmp_path / "grown")
    store, first = prepared(grown)
    assert "since" not in artifacts.require(store, first, made_by="a test").counts
    copy_studies(made, archive, chosen[7:])
    folders = [archive / f"2024/{index % 2}/{index:05d}" for index in chosen]
    shutil.rmtree(folders[0])
    next(folders[1].glob("*.dcm")).unlink()
    victim = sorted(folders[2].glob("*.dcm"))[0]
    victim.write_bytes(victim.read_bytes()[:3000])
    store, second = prepared(grown)
    taken = artifacts.require(store, second, made_by="a test").counts["since"]
    assert taken == {"studies": first.path, "taken_over": 4}
    scratch_store, scratch = prepared(at(archive_run(made, archive, "grown"), tmp_path / "scratch"))
    assert scratch == second
    assert digests(store, second) == digests(scratch_store, scratch)
    assert not store.list("progress")


def test_an_interrupted_step_keeps_its_parts_and_ends_with_the_same_bytes(made: Made, tmp_path: Path) -> None:
    run = at(made.run, tmp_path)
    store = store_of(run)

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith("de-identified") and done:
            raise KeyboardInterrupt

    corpus = make_corpus(run, silent)
    with pytest.raises(KeyboardInterrupt):
        prepare_studies(run, corpus, interrupt)
    kept = store.list(f"progress/{made.studies.path}")
    assert kept and artifacts.find(store, made.studies) is None
    part = next(path for path in store.list(made.studies.path) if "/part-" in path)
    written = Path(store.key(part)).stat().st_mtime_ns
    assert make(run).refs == made.refs
    for ref in made.refs:
        assert digests(store, ref) == digests(made.store, ref)
    assert Path(store.key(part)).stat().st_mtime_ns == written, "a committed part was made again"
    assert not store.list("progress")


def test_a_worker_killed_in_the_middle_costs_nothing(made: Made, tmp_path: Path) -> None:
    run = at(made.run, tmp_path)
    store = store_of(run)
    killed: list[int] = []

    def hunt() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for process in psutil.process_iter(["name", "cmdline"]):
                if any("WriteStudies" in word for word in process.info["cmdline"] or ()):
                    time.sleep(0.5)
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.05)

    hunter = threading.Thread(target=hunt)
    hunter.start()
    assert make(run).refs == made.refs
    hunter.join()
    assert killed
    assert digests(store, made.studies) == digests(made.store, made.studies)


def test_a_forgotten_patient_is_in_no_later_version_and_everything_made_of_them_is_named(
    made: Made,
    tmp_path: Path,
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(Path(made.store.key()), workspace)
    run = at(made.run, workspace)
    store = store_of(run)
    rows = rows_of(store, made.studies.path)
    patient = next(one["patient_key"] for one in rows if one["split"] == "train")
    checkpoint = artifacts.plan("checkpoint", "trained", config={}, parents=[made.shards])
    artifacts.write_file(store, checkpoint.path, "weights", b"1")
    artifacts.seal(store, checkpoint, config={}, parents=[made.shards])
    found = forget(run, store, patient)
    assert found.artifacts == (made.studies, made.shards, checkpoint)
    assert found.weights == (checkpoint,) and found.versions == ()
    later = prepare_studies(run, made.corpus, silent)
    assert later != made.studies
    assert rows_of(store, later.path) == [one for one in rows if one["patient_key"] != patient]
    record = next(one for one in read_index(store, later).records.values() if one.patient_key == patient)
    assert record.frames == () and not record.kept
    gone = sum(one["patient_key"] == patient for one in rows)
    assert ledger_of(store, later)["deidentify"]["quarantined"] == {"forgotten": gone}
    taken = artifacts.require(store, later, made_by="a test").counts["since"]["taken_over"]
    assert taken == len(read_index(store, later).records) - gone
    assert prepare_studies(run, made.corpus, silent) == later
    answers = [f"cache/instruct/{study}/one.json" for study in (found.studies[0], "f" * 64)]
    for path in answers:
        store.write_bytes(path, b"{}")
    purge(store, found)
    assert [store.exists(path) for path in answers] == [False, True]
    assert artifacts.find(store, made.studies) is None and not store.list(made.shards.path)
    assert artifacts.find(store, later) is not None and artifacts.find(store, checkpoint) is not None
    unknown = forget(run, store, "0" * 64)
    assert unknown == replace(unknown, artifacts=(), versions=())


def killed_by(victim: str) -> type[WriteStudies]:
    """A worker that one study kills, as a decoder's crash does; local, so that Ray ships it by value."""

    class Deadly(WriteStudies):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            prepare = self.worker.prepare

            def deadly(files: StudyFiles) -> tuple[dict[str, Any] | None, StudyRecord]:
                if files.identity == victim:
                    os.kill(os.getpid(), signal.SIGKILL)
                return prepare(files)

            self.worker.prepare = deadly  # type: ignore[method-assign]

    return Deadly


def test_a_study_that_kills_its_workers_goes_to_quarantine_and_costs_the_others_nothing(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = at(made.run, tmp_path)
    victim = header(folder_of(made) / f"study-{sound(made)[0]:05d}").StudyInstanceUID
    monkeypatch.setattr(studies, "WriteStudies", killed_by(str(victim)))
    store = store_of(run)
    ref = prepare_studies(run, make_corpus(run, silent), silent)
    name = keyed(PUBLIC_KEY, victim)
    assert rows_of(store, ref.path) == [
        one for one in rows_of(made.store, made.studies.path) if one["study_hash"] != name
    ]
    record = read_index(store, ref).records[name]
    assert {one.reason for one in record.rejections} == {"kills_worker"}
    num_files = len(list((folder_of(made) / f"study-{sound(made)[0]:05d}").glob("*.dcm")))
    assert ledger_of(store, ref)["read"]["quarantined"]["kills_worker"] == num_files
    assert not store.list("attempts")
