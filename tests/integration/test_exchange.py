"""A table and conversations through real Ray Data to shards, and out to an object store and back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from echoray import artifacts
from echoray.config import RunConfig, load_run
from echoray.data.batch import load_examples
from echoray.data.export import export_studies
from echoray.data.shards import tokenize
from echoray.data.sources.tables import list_tables
from echoray.data.studies import prepare_studies
from echoray.data.validate import validate
from echoray.model.base import WEIGHTS
from echoray.storage import open_store, store_of
from tests.integration.conftest import S3Server
from tests.integration.test_data_pipeline import ledger_of, rows_of, silent
from tests.unit.data.test_table_sources import LLAVA, write_picture, write_table

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def run_on(server: S3Server, workspace: Path, workers: int, **source: Any) -> RunConfig:
    data = {
        "source": {"phantom": None, "package_samples": False, **source},
        "deidentify": {"key_ref": "env:ECHORAY_TEST_KEY", "pixels": False, "pixels_cleaned_elsewhere": True},
        "image_size_px": 56,
        "num_workers": workers,
    }
    storage = {"endpoint_url": server.endpoint_url, "region": "us-east-1"}
    return load_run("tiny").merged({"workspace": str(workspace), "storage": storage, "data": data})


def test_tables_and_conversations_become_shards_and_go_out_to_s3_and_back(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHORAY_TEST_KEY", "a key")
    raw = tmp_path / "raw"
    # Every patient has pictures of their own: the leak audit lets no two splits share one.
    pairs = [[f"{number}-{name}.png" for name in "ab"] for number in range(12)]
    for seed, name in enumerate(name for pair in pairs for name in pair):
        write_picture(raw / name, seed)
    row = {"images": ";".join(pairs[0]), "findings": "The liver is smooth.", "impression": "Normal liver."}
    rows = [
        {**row, "images": ";".join(pair), "study_id": f"S-{number}", "patient_id": f"P-{number}"}
        for number, pair in enumerate(pairs)
    ]
    write_table(raw, [*rows, {**row, "study_id": "S-12", "images": "none.png"}, rows[0]])
    talks = [
        {**LLAVA, "image": pair, "id": str(number), "patient_id": f"P-{number}"}
        for number, pair in enumerate(pairs)
    ]
    (raw / "talk.jsonl").write_text(
        "\n".join(map(json.dumps, [*talks, {**LLAVA, "id": "v", "video": "x.mp4"}]))
    )
    source = {"image_report_uris": [str(raw)], "conversation_uris": [f"file://{raw}/talk.jsonl"]}

    one, two = (run_on(s3_server, tmp_path / f"w{n}", n, **source) for n in (1, 2))
    ref = prepare_studies(one, None, silent)
    assert ledger_of(store_of(one), ref)["read"] == {
        "step": "read",
        "records_in": 27,
        "records_out": 24,
        "quarantined": {"duplicate_id": 1, "missing_image": 1, "video": 1},
        "shortened": {},
    }
    found = rows_of(store_of(one), ref.path)
    assert Counter(row["source"] for row in found) == {"image-report": 12, "conversations": 12}
    assert len({row["patient_key"] for row in found}) == 12 and {len(row["images"]) for row in found} == {2}
    files = artifacts.require(store_of(one), ref, made_by="a test").files
    again = artifacts.require(store_of(two), prepare_studies(two, None, silent), made_by="a test").files
    assert files == again

    shards = tokenize(one, ref, WEIGHTS, silent)
    examples = [
        example for split in ("train", "test") for example in load_examples(store_of(one), shards, split)
    ]
    assert len(examples) > 24
    out = open_store(f"s3://{s3_server.bucket}/exchange/out", s3_server.access)
    report = export_studies(one, ref, out, "openai", None, silent)
    back = run_on(s3_server, tmp_path / "w3", 1, conversation_uris=[out.uri(report.file)])
    (listing,) = list_tables(back)
    assert len(listing.studies) == report.num_conversations == 24
    assert not [one for checked in validate(back, out.root, "openai") for one in checked.findings]
