"""The whole main job, as a user runs it: its promises, its second run, its interruptions."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from echoray import artifacts
from echoray.storage import open_store
from echoray.types import ArtifactRef

pytestmark = pytest.mark.demo

MARK = "ECHORAY_TEST_WORKSPACE"

SMALL = [
    *("--set", "data.source.phantom.num_studies=28"),
    *("--set", "train.align.max_steps=3"),
    *("--set", "train.finetune.max_steps=3"),
    *("--set", "evaluate.max_new_tokens=16"),
]


def demo(workspace: Path, *more: str, timeout_s: float = 1500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        demo_command(workspace, *more),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=marked(workspace),
    )


def demo_command(workspace: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "echoray", "demo", "--workspace", str(workspace), *more]


def marked(workspace: Path) -> dict[str, str]:
    return {**os.environ, MARK: str(workspace)}


def manifests(workspace: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in workspace.rglob("manifest.json")}


def processes_of(workspace: Path) -> list[str]:
    """What still runs of the demos of ``workspace``: descendants inherit the mark in the environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(workspace) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def gone_within(workspace: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_of(workspace):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo exactly as `make demo` runs it, in a fresh workspace."""
    workspace = tmp_path_factory.mktemp("demo")
    done = demo(workspace)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return workspace, done.stdout


def test_the_demo_keeps_its_promises(finished: tuple[Path, str]) -> None:
    output = " ".join(finished[1].split())  # lines are wrapped where there is no terminal
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


def identifying(workspace: Path) -> re.Pattern[str]:
    """Matches names, numbers, dates, institutions and staff of every synthetic patient and visit."""
    (truth_file,) = workspace.rglob("truth.jsonl")
    people = [json.loads(line)["patient"] for line in truth_file.read_text().splitlines()]
    named = {str(part[key]) for one in people for part in one.values() for key in part if key != "time"}
    values = sorted(value for value in named if len(value) >= 6)
    assert len(values) > 1000
    # As whole words: eight digits of a patient's number also occur inside of longer numbers.
    return re.compile(rf"(?<![0-9A-Za-z.])(?:{'|'.join(map(re.escape, values))})(?![0-9A-Za-z])")


def test_no_patient_identifier_of_the_ground_truth_is_in_anything_made_from_the_corpus(
    finished: tuple[Path, str],
) -> None:
    import pyarrow.parquet as pq

    workspace, output = finished
    pattern = identifying(workspace)
    found = {"output": output}
    for path in workspace.rglob("*"):
        made = path.is_file() and "corpus" not in path.parts and path.suffix not in {".safetensors", ".png"}
        if made and path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            plain = [{key: value for key, value in row.items() if key != "images"} for row in rows]
            found[str(path)] = json.dumps(plain, ensure_ascii=False)
        elif made:  # manifests, ledgers, metrics, pages, and MLflow's database as bytes
            found[str(path)] = path.read_bytes().decode("latin-1")
    assert len(found) > 20
    leaked = {name: match[0] for name, text in found.items() if (match := pattern.search(text))}
    assert not leaked


def test_a_second_demo_makes_nothing_again(finished: tuple[Path, str]) -> None:
    workspace, _ = finished
    before = manifests(workspace)
    done = demo(workspace)
    assert done.returncode == 0, done.stderr[-3000:]
    assert manifests(workspace) == before


@pytest.mark.parametrize(
    "words",
    [
        "echoray data tokenize --workspace {workspace}",
        "echoray model export --stage align --workspace {workspace}",
        "echoray model export --workspace {workspace} --out {workspace}-handed-over",
        "echoray evaluate --workspace {workspace}",
        "jobs.finetune --set workspace={workspace}",
    ],
)
def test_a_single_step_finds_what_the_demo_made(finished: tuple[Path, str], words: str) -> None:
    workspace, _ = finished
    before = manifests(workspace)
    command = [sys.executable, "-m", *words.format(workspace=workspace).split()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=marked(workspace)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(workspace) in done.stdout + done.stderr
    assert manifests(workspace) == before
    for card in workspace.parent.glob(f"{workspace.name}-handed-over/README.md"):
        assert re.search(r"\| report \| \d+ \| rouge_l \| \d+\.\d \|", card.read_text())


def test_a_small_chinese_demo_runs_to_its_end(tmp_path: Path) -> None:
    done = demo(tmp_path, *SMALL, "--language", "zh")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shards = next(tmp_path.glob("shards/*/train/part-00000.parquet"))
    assert_chinese(shards)


def assert_chinese(shard: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(shard, columns=["prompt", "answer", "language"])
    assert set(table["language"].to_pylist()) == {"zh"}
    for text in [*table["prompt"].to_pylist(), *table["answer"].to_pylist()]:
        assert re.search("[\u4e00-\u9fff]", text) or re.fullmatch(r"[\d.x× ]+(mm|cm)", text), text


# What the demo prints when a step has begun, and the signal that it then gets.
MOMENTS = (
    ("synthetic studies: ", signal.SIGINT),
    ("de-identified studies: ", signal.SIGKILL),
    ("de-identified studies: ", signal.SIGTERM),
    ("tokenized parts of studies: ", signal.SIGINT),
    ("stage 1: ", signal.SIGKILL),
    ("stage 2: ", signal.SIGINT),
    ("generated by base: ", signal.SIGTERM),
    ("registered ", signal.SIGINT),
)


def start_demo(workspace: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        demo_command(workspace, *SMALL, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=marked(workspace),
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"{pattern!r} was never printed: {process.stderr.read()[-3000:]}")


def test_a_demo_interrupted_in_every_step_leaves_nothing_half_written_and_goes_on(tmp_path: Path) -> None:
    finished: dict[str, float] = {}
    for begun, signal_number in MOMENTS:
        process = start_demo(tmp_path)
        read_until(process, begun)
        process.send_signal(signal_number)
        _, error = process.communicate(timeout=120)
        if signal_number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130, error[-3000:]
            assert "interrupted" in error and "Traceback" not in error, error[-3000:]
            assert gone_within(tmp_path, 5), processes_of(tmp_path)
        # What was finished before is still there, untouched: the next run does not make it again.
        assert finished.items() <= manifests(tmp_path).items(), begun
        finished = manifests(tmp_path)
    keeps_serving_until_ctrl_c(tmp_path)
    assert finished.items() <= manifests(tmp_path).items()
    verify_everything(tmp_path)


def keeps_serving_until_ctrl_c(workspace: Path) -> None:
    import httpx

    process = start_demo(workspace, "--keep-serving")
    address, key = read_until(process, r"serving at (\S+), API key (\S+)").groups()
    models = httpx.get(f"{address}/models", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    assert models.status_code == 200
    assert httpx.get(f"{address}/models", timeout=30).status_code == 401
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error[-3000:]
    assert gone_within(workspace, 5), processes_of(workspace)


def verify_everything(workspace: Path) -> None:
    store = open_store(str(workspace))
    paths = [path for path in store.list() if path.endswith("/manifest.json")]
    assert len(paths) >= 11  # corpus, studies, shards, 2 checkpoints, 2 models, 3 predictions, evaluation
    for path in paths:
        artifacts.verify(store, ArtifactRef(**json.loads(store.read_bytes(path))["ref"]))


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
