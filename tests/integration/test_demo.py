"""The whole main job, as a user runs it: its promises, and its second run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.demo import demo, manifests, marked

pytestmark = [pytest.mark.integration, pytest.mark.demo]


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
