"""The whole main job, as a user runs it: its promises, its second run, its interruptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.demo

SMALL = [
    *("--set", "data.source.phantom.num_studies=28"),
    *("--set", "train.align.max_steps=3"),
    *("--set", "train.finetune.max_steps=3"),
    *("--set", "evaluate.max_new_tokens=16"),
]


def demo(workspace: Path, *more: str, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echoray", "demo", "--workspace", str(workspace), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def manifests(workspace: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in workspace.rglob("manifest.json")}


def processes_of(workspace: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(workspace) in line and "ps -eo" not in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo exactly as `make demo` runs it, in a fresh workspace."""
    workspace = tmp_path_factory.mktemp("demo")
    done = demo(workspace)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return workspace, done.stdout


def test_the_demo_keeps_its_promises(finished: tuple[Path, str]) -> None:
    _, output = finished
    gain = re.search(r"stage 2 against base: ([+-][\d.]+) ROUGE-L", output)
    named = re.search(r"names the right system in ([\d.]+)%", output)
    assert gain is not None and float(gain[1]) >= 20
    assert named is not None and float(named[1]) >= 90


def test_every_ledger_of_the_demo_reconciles_and_faults_are_quarantined(finished: tuple[Path, str]) -> None:
    workspace, _ = finished
    rows = [row for path in workspace.rglob("ledger.json") for row in json.loads(path.read_text())]
    assert rows
    for row in rows:
        assert row["records_in"] == row["records_out"] + sum(row["quarantined"].values()), row
    reasons = {reason for row in rows for reason in row["quarantined"]}
    assert {"multi_region", "no_report"} <= reasons


def test_no_patient_identifier_of_the_ground_truth_reaches_shards_output_or_registry(
    finished: tuple[Path, str],
) -> None:
    import pyarrow.parquet as pq

    workspace, output = finished
    (truth_file,) = workspace.rglob("truth.jsonl")
    patients = [json.loads(line)["patient"] for line in truth_file.read_text().splitlines()]
    secrets = {str(p[key]) for p in patients for key in ("name", "patient_id") if p.get(key)}
    assert len(secrets) > 100
    texts = [output]
    for path in workspace.glob("shards/**/part-*.parquet"):
        table = pq.read_table(path, columns=["prompt", "answer"])
        texts += [*table["prompt"].to_pylist(), *table["answer"].to_pylist()]
    everything = "\n".join(texts)
    assert not [secret for secret in secrets if secret in everything]


def test_a_second_demo_makes_nothing_again(finished: tuple[Path, str]) -> None:
    workspace, _ = finished
    before = manifests(workspace)
    done = demo(workspace)
    assert done.returncode == 0, done.stderr[-3000:]
    assert manifests(workspace) == before


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_demo_leaves_nothing_half_written_and_goes_on(
    tmp_path: Path, signal_name: str
) -> None:
    command = [sys.executable, "-m", "echoray", "demo", "--workspace", str(tmp_path), *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list(tmp_path.glob("corpus/*/manifest.json"))))
    time.sleep(3)
    os.kill(process.pid, getattr(signal, signal_name))
    _, error = process.communicate(timeout=120)
    if signal_name != "SIGKILL":
        assert process.returncode == 130, error[-2000:]
        assert "interrupted" in error and "Traceback" not in error
    corpus = manifests(tmp_path)
    done = demo(tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert corpus.items() <= manifests(tmp_path).items()


def test_keep_serving_leaves_the_endpoint_up_until_ctrl_c(tmp_path: Path) -> None:
    import httpx

    command = [
        sys.executable,
        "-m",
        "echoray",
        "demo",
        "--workspace",
        str(tmp_path),
        *SMALL,
        "--keep-serving",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if match := re.search(r"serving at (\S+), API key (\S+)", line):
            address, key = match[1], match[2]
            break
    assert address, process.stderr.read() if process.stderr else ""
    models = httpx.get(f"{address}/models", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    assert models.status_code == 200
    assert httpx.get(f"{address}/models", timeout=30).status_code == 401
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0
    assert not processes_of(tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected", "code"),
    [
        (["data.source.phantom=null", "data.source.package_samples=false"], "no source", 2),
        (["data.source.phantom.num_studies=0", "data.source.package_samples=false"], "empty", 2),
        (
            [
                "data.source={dicom_uris: [/no/such/folder], phantom: null, package_samples: false}",
                "data.deidentify.key_ref=env:TEST_DEID_KEY",
            ],
            "/no/such/folder",
            2,
        ),
    ],
)
def test_missing_or_empty_sources_end_with_a_clear_message(
    tmp_path: Path, settings: list[str], expected: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_DEID_KEY", "k" * 32)
    done = demo(tmp_path, *(word for setting in settings for word in ("--set", setting)))
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_a_full_disk_ends_with_a_clear_message(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = demo(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert done.returncode == 1
    assert "free" in done.stderr and "hint" in done.stderr and "Traceback" not in done.stderr


def wait_for(condition, timeout_s: float = 300) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.5)
