"""Corpus, studies and shards on real Ray Data: what is kept, what is not, and that no byte depends on how."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echoray import artifacts
from echoray.data.batch import load_examples
from echoray.data.deidentify.pixels import RapidTextReader
from echoray.data.shards import tokenize
from echoray.data.statistics import make_statistics
from echoray.data.studies import prepare_studies
from echoray.errors import ConfigError, InputDataError
from echoray.model.base import WEIGHTS
from echoray.storage import store_of
from echoray.types import SPLITS
from tests.integration.conftest import S3Server
from tests.integration.pipeline_case import (
    DRIVER,
    KEY,
    KEY_VARIABLE,
    NUM_STUDIES,
    PUBLIC_KEY,
    Made,
    archive_run,
    assert_same_bytes,
    copy_studies,
    digests,
    folder_of,
    header,
    keyed,
    ledger_of,
    make,
    quarantine_of,
    rows_of,
    silent,
    truths,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_every_record_is_in_the_output_or_in_quarantine(made: Made) -> None:
    steps = ledger_of(made.store, made.studies) | ledger_of(made.store, made.shards)
    for row in steps.values():
        assert row["records_in"] == row["records_out"] + sum(row["quarantined"].values()), row
    assert steps["read"]["records_in"] == len(list(folder_of(made).rglob("*.dcm")))
    readable = [truth for truth in truths(made) if truth["fault"] != "corrupt"]
    assert steps["frames"]["records_in"] == sum(len(truth["marks"]) for truth in readable)
    assert list(steps) == ["read", "frames", "deidentify", "studies", "audit", "tokenize"]
    assert steps["deidentify"]["records_in"] == NUM_STUDIES
    assert steps["studies"]["records_in"] == steps["deidentify"]["records_out"]
    studies, examples = rows_of(made.store, made.studies.path), rows_of(made.store, made.shards.path)
    assert steps["studies"]["records_out"] == len(studies) == NUM_STUDIES - 3
    assert steps["tokenize"]["records_out"] == len(examples) == 4 * len(studies)
    for ref in (made.studies, made.shards):
        found: dict[tuple[str, str], int] = defaultdict(int)
        for row in quarantine_of(made.store, ref):
            found[row["step"], row["reason"]] += 1
        ledger = ledger_of(made.store, ref).values()
        assert found == {(row["step"], why): num for row in ledger for why, num in row["quarantined"].items()}


def test_each_fault_is_quarantined_for_what_it_is_and_nothing_else_is_lost(made: Made) -> None:
    reasons: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in quarantine_of(made.store, made.studies):
        reasons[row["record"].partition("/")[0]].add((row["step"], row["reason"]))
    kept = {row["study_hash"]: row for row in rows_of(made.store, made.studies.path)}
    expected = {
        "multi_region": {("frames", "multi_region"), ("studies", "no_image")},
        "no_report": {("studies", "no_report")},
        "corrupt": {("studies", "no_image")},
    }
    for truth in truths(made):
        folder = folder_of(made) / f"study-{truth['index']:05d}"
        study_hash = keyed(PUBLIC_KEY, header(folder).StudyInstanceUID)
        if truth["fault"] is not None:
            assert reasons.pop(study_hash) == expected[truth["fault"]]
            assert study_hash not in kept
        else:
            row = kept.pop(study_hash)
            assert (row["findings"], row["impression"]) == tuple(truth["clean_report"].values())
            assert row["system"] == truth["system"]
    assert not kept
    # What is left names files that cannot be read, by the hash of their address, and second views.
    left = sorted(one for found in reasons.values() for one in found)
    assert {step for step, _ in left} <= {"read", "frames"}
    damaged = [reason for step, reason in left if step == "read"]
    assert damaged in (["not_dicom"], ["unreadable_pixels"])


def test_shards_load_as_training_examples_and_no_patient_is_in_two_splits(made: Made) -> None:
    studies = {row["study_hash"]: row for row in rows_of(made.store, made.studies.path)}
    patients: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        examples = load_examples(made.store, made.shards, split)
        assert {one.study_hash for one in examples} == {
            key for key, row in studies.items() if row["split"] == split
        }
        for one in examples:
            row = studies[one.study_hash]
            patients[row["patient_key"]].add(split)
            assert one.images == tuple(row["images"])
            assert one.num_targets > 3 and one.system == row["system"]
    assert all(len(splits) == 1 for splits in patients.values())
    assert len(patients) < len(studies), "no patient has two studies"
    assert set.union(*patients.values()) == set(SPLITS)


def test_two_workers_replace_a_half_written_attempt_and_write_the_same_bytes(
    made: Made, tmp_path: Path
) -> None:
    run = made.run.merged({"workspace": str(tmp_path), "data": {"num_workers": 2}})
    store = store_of(run)
    for ref in made.refs:
        victim = next(path for path in made.store.list(ref.path) if path.endswith((".parquet", ".dcm")))
        store.write_bytes(victim, made.store.read_bytes(victim)[:100])
        store.write_bytes(f"{ref.path}/part-00099.parquet", b"of another attempt")
    again = make(run)
    assert again.refs == made.refs
    assert_same_bytes(made, store)


def test_a_second_call_computes_and_writes_nothing(made: Made) -> None:
    def refuse(step: str, done: int, total: int | None) -> None:
        raise AssertionError(f"{step} was computed again")

    root = Path(made.store.key())
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert make(made.run.merged({"data": {"num_workers": 2}}), refuse) == made_with(made, num_workers=2)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def made_with(made: Made, **data: Any) -> Made:
    return Made(made.run.merged({"data": data}), *made.refs)


def test_object_storage_holds_the_same_bytes_as_a_folder(made: Made, s3_server: S3Server) -> None:
    run = made.run.merged(
        {
            "workspace": f"s3://{s3_server.bucket}/data-pipeline",
            "storage": {"endpoint_url": s3_server.endpoint_url, "region": "us-east-1"},
        }
    )
    # Its own Ray instance: the workers take the server's credentials from the environment they start in.
    command = [sys.executable, "-c", DRIVER, run.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_bytes(made, store_of(run))


def test_the_statistics_are_those_of_the_rows_and_of_the_ledger(made: Made) -> None:
    ref = make_statistics(made.run, made.studies, made.shards)
    found = json.loads(made.store.read_bytes(f"{ref.path}/stats.json"))
    studies, examples = rows_of(made.store, made.studies.path), rows_of(made.store, made.shards.path)
    assert sum(one["num_studies"] for one in found["cases"]) == len(studies)
    assert sum(one["num_images"] for one in found["cases"]) == sum(len(row["images"]) for row in studies)
    assert found["num_patients"] == len({row["patient_key"] for row in studies})
    assert sum(one["num_examples"] for one in found["examples"]) == len(examples)
    assert sum(one["num_tokens"] for one in found["examples"]) == sum(len(row["labels"]) for row in examples)
    by_step = ledger_of(made.store, made.studies) | ledger_of(made.store, made.shards)
    assert {row["step"]: row for row in found["ledger"]} == by_step


def test_long_answers_lose_their_tail_and_examples_without_room_for_one_are_quarantined(made: Made) -> None:
    whole = {row["example_id"]: row for row in rows_of(made.store, made.shards.path)}
    given = {one: row["num_tokens"] - row["num_answer_tokens"] for one, row in whole.items()}
    limit = max(given.values())  # no answer fits beside the longest prompts, and few whole ones beside others
    run = made.run.merged({"data": {"max_length_tokens": limit}})
    shards = tokenize(run, made.studies, WEIGHTS, silent)
    assert shards != made.shards
    kept = {row["example_id"]: row for row in rows_of(made.store, shards.path)}
    rejected = quarantine_of(made.store, shards)
    assert {row["record"] for row in rejected} == {one for one, num in given.items() if num >= limit}
    assert {(row["step"], row["reason"]) for row in rejected} == {("tokenize", "too_long")}
    assert kept.keys() == {one for one, num in given.items() if num < limit}
    cut = {one for one in kept if whole[one]["num_tokens"] > limit}
    for one, row in kept.items():
        assert row["input_ids"] == whole[one]["input_ids"][:limit]
        assert (row["images"], row["truncated"]) == (whole[one]["images"], one in cut)
    assert kept and rejected and cut
    assert ledger_of(made.store, shards)["tokenize"]["shortened"] == {"truncated": len(cut)}
    assert artifacts.require(made.store, shards, made_by="a test").counts["truncated"] == len(cut)


def test_an_archive_is_read_under_its_own_key_and_patients_stay_in_their_split_as_it_grows(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    sound = [truth["index"] for truth in truths(made) if truth["fault"] is None]
    copy_studies(made, tmp_path, sound[:3])
    first = prepare_studies(archive_run(made, tmp_path, "growing"), None, silent)
    copy_studies(made, tmp_path, sound[3:12])
    second = prepare_studies(archive_run(made, tmp_path, "growing"), None, silent)
    small, grown = (
        {row["study_hash"]: row for row in rows_of(made.store, ref.path)} for ref in (first, second)
    )
    assert len(small) == 3 and len(grown) == 12
    assert small == {key: grown[key] for key in small}
    synthetic = {row["findings"] + row["impression"]: row for row in rows_of(made.store, made.studies.path)}
    for index in sound[:12]:
        said = header(folder_of(made) / f"study-{index:05d}")
        row = grown.pop(keyed(KEY.encode(), said.StudyInstanceUID))
        assert row["patient_key"] == keyed(KEY.encode(), said.PatientID)
        twin = synthetic[row["findings"] + row["impression"]]
        assert (row["images"], row["source"]) == (twin["images"], "dicom")
    manifest = made.store.read_bytes(f"{second.path}/{artifacts.MANIFEST}").decode()
    assert KEY_VARIABLE in manifest and KEY not in manifest


def test_a_study_in_series_folders_and_twice_is_one_row_whatever_the_workers(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    sound = [truth["index"] for truth in truths(made) if truth["fault"] is None][:4]
    num_files = 0
    for index in sound:
        for number, file in enumerate(sorted((folder_of(made) / f"study-{index:05d}").glob("*.dcm"))):
            series = tmp_path / f"{index}" / f"series-{number}"
            series.mkdir(parents=True)
            shutil.copy(file, series / "0.dcm")
            num_files += 1
    twice = shutil.copytree(tmp_path / f"{sound[0]}", tmp_path / "export" / "again")
    (tmp_path / "Okafor Grace").symlink_to(tmp_path / "nowhere")
    copies = len(list(twice.rglob("*.dcm")))
    contents = []
    for num_workers in (1, 2):
        run = archive_run(made, tmp_path, f"series-{num_workers}", num_workers=num_workers)
        ref = prepare_studies(run, None, silent)
        ledger = ledger_of(made.store, ref)
        assert ledger["read"]["records_in"] == num_files + copies + 1
        assert ledger["read"]["quarantined"] == {"duplicate_file": copies, "unreadable_file": 1}
        hashes = [row["study_hash"] for row in rows_of(made.store, ref.path)]
        assert len(hashes) == len(set(hashes)) == len(sound)
        contents.append(digests(made.store, ref))
    assert contents[0] == contents[1]


def secrets_of(patient: dict[str, Any]) -> set[str]:
    person = patient["patient"]
    return {str(person["patient_id"]), *(part for part in person["name"].split() if len(part) > 3)}


def test_pictures_of_studies_show_their_patient_only_where_pixels_are_left_alone(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    chosen = [truth for truth in truths(made) if truth["fault"] is None][:2]
    copy_studies(made, tmp_path, [truth["index"] for truth in chosen])
    secrets = set.union(*(secrets_of(truth["patient"]) for truth in chosen))
    reader, seen = RapidTextReader(), []
    for pixels in (False, True):
        # Squares enlarge, and small letters are read more surely so.
        changes = {"image_size_px": 560, "image_layout": "square", "deidentify": {"pixels": pixels}}
        run = archive_run(made, tmp_path, "redacted" if pixels else "as-read", **changes)
        ref = prepare_studies(run, None, silent)
        rows = rows_of(made.store, ref.path)
        assert len(rows) == 2
        pictures = [np.asarray(Image.open(io.BytesIO(one))) for row in rows for one in row["images"]]
        assert all(one.shape == (560, 560, 3) and one.std() > 10 for one in pictures)
        text = " ".join(piece.text for one in pictures for piece in reader.read(one)).lower()
        seen.append({secret for secret in secrets if secret.lower() in text})
    assert len(seen[0]) >= 2, "the burned-in text was not readable in the first place"
    assert not seen[1]


def test_a_missing_key_or_archive_is_named(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    run = archive_run(made, tmp_path / "nowhere", "missing")
    with pytest.raises(ConfigError, match=f"env:{KEY_VARIABLE}: the secret is empty or not set"):
        prepare_studies(run, None, silent)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(InputDataError, match="nowhere: missing or empty"):
        prepare_studies(run, None, silent)
    assert not made.store.list("studies/missing")


def test_an_archive_without_a_usable_study_is_refused_with_the_reason(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no DICOM")
    with pytest.raises(InputDataError, match=r"no study is usable: 1 records were rejected.*not_dicom"):
        prepare_studies(archive_run(made, tmp_path, "unusable"), None, silent)
    assert not made.store.list("studies/unusable")
