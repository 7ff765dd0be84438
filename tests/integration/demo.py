"""The demo as a process of its own, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

MARK = "ECHORAY_TEST_WORKSPACE"

SMALL = [
    *("--set", "data.source.phantom.num_studies=28"),
    *("--set", "train.align.max_steps=3"),
    *("--set", "train.finetune.max_steps=3"),
    *("--set", "evaluate.max_new_tokens=16"),
]


def demo(workspace: Path, *more: str, timeout_s: float = 3000) -> subprocess.CompletedProcess[str]:
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
