"""Ray jobs end as the command line does: a message, an exit code, Ray and the workspace given back."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import jobs.entry
from echoray.config import ClusterConfig
from echoray.errors import TrainingError
from jobs.entry import run_job

ROOT = Path(__file__).parents[3]
JOBS = ("preprocess", "pretrain", "finetune", "evaluate")


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


@pytest.mark.parametrize("name", JOBS)
def test_every_job_explains_itself(name: str) -> None:
    done = job(f"jobs.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout and "--set KEY=VALUE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--set", "train.num_worker=1"), "did you mean 'train.num_workers'?"),
        (("--config", "tinny"), "did you mean 'tiny'?"),
        (("--set", "workspace=file://"), "is not supported"),
        (("--unknown",), "unrecognized arguments"),
    ],
)
def test_a_mistake_ends_a_job_with_2_and_no_traceback(arguments: tuple[str, ...], expected: str) -> None:
    done = job("jobs.preprocess", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[ClusterConfig]:
    """The clusters of finished Ray sessions; none is started."""
    finished: list[ClusterConfig] = []

    @contextmanager
    def session(cluster: ClusterConfig) -> Iterator[None]:
        try:
            yield
        finally:
            finished.append(cluster)

    monkeypatch.setattr(jobs.entry, "ray_session", session)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return finished


class TaskError(Exception):
    """A worker's error as Ray hands it over."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a task failed")
        self.cause = cause


def failing(error: BaseException, tmp_path: Path) -> int:
    def step(steps: Any) -> Any:
        raise error

    return run_job(step, "A test.", ["--set", f"workspace={tmp_path}"])


def test_a_workers_failure_ends_the_job_with_its_exit_code_and_hint(
    tmp_path: Path, sessions: list[ClusterConfig], caplog: pytest.LogCaptureFixture
) -> None:
    assert failing(TaskError(OSError(errno.ENOSPC, "No space left on device")), tmp_path) == 1
    assert "no space left on the disk" in caplog.text and "free space" in caplog.text
    assert failing(TaskError(TrainingError("diverged", hint="lower the rate")), tmp_path) == 1
    assert "diverged\n  hint: lower the rate" in caplog.text
    assert failing(KeyboardInterrupt(), tmp_path) == 130
    assert len(sessions) == 3
    with pytest.raises(TaskError):
        failing(TaskError(KeyError("a defect")), tmp_path)


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        (None, None, None),
        (None, "10.0.0.1:6379", "auto"),
        ("ray://other:10001", "10.0.0.1:6379", "ray://other:10001"),
    ],
)
def test_a_job_runs_on_the_cluster_it_was_submitted_to(
    configured: str | None,
    variable: str | None,
    expected: str | None,
    tmp_path: Path,
    sessions: list[ClusterConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    words = ["--set", f"workspace={tmp_path}"]
    words += ["--set", f"cluster.ray_address={configured}"] if configured else []

    def step(steps: Any) -> Any:
        raise TrainingError("far enough", hint="none")

    run_job(step, "A test.", words)
    assert [cluster.ray_address for cluster in sessions] == [expected]


STOPPED_JOB = """
import sys, time, contextlib, jobs.entry

@contextlib.contextmanager
def session(cluster):
    try:
        yield
    finally:
        print("ray was shut down", flush=True)

def step(steps):
    print("started", flush=True)
    time.sleep(60)

jobs.entry.ray_session = session
sys.exit(jobs.entry.run_job(step, "A test.", sys.argv[1:]))
"""


def test_sigterm_from_kubernetes_stops_ray_and_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED_JOB, "--set", f"workspace={tmp_path}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert output == "ray was shut down\n"
    assert process.returncode == 130
    assert "interrupted" in errors and "run the same command again" in errors and "Traceback" not in errors
