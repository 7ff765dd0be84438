"""The doctor finds this machine ready, and names what is not with what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from echoray.config import load_run
from echoray.platform import doctor
from echoray.platform.doctor import Check, diagnose


def run_doctor(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "echoray", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_this_machine_is_ready_and_its_workspace_is_left_empty(tmp_path: Path) -> None:
    code, output = run_doctor("--workspace", str(tmp_path))
    assert code == 0, output
    lines = [line.split(None, 1) for line in output.splitlines() if not line.startswith(" ")]
    assert {status for status, _ in lines} <= {"ok", "warning"}
    told = dict(line.split(": ", 1) for _, line in lines)
    assert told["torch"] == importlib.metadata.version("torch")
    assert told["base model"] == "embedded"
    assert str(tmp_path) in told["workspace"]
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_an_error_with_a_next_act(tmp_path: Path) -> None:
    code, output = run_doctor(
        *("--workspace", "/proc/echoray"),
        *("--set", "model.base=/no/such"),
        *("--set", "cluster.gpus_per_worker=1"),
    )
    assert code == 1
    lines = output.splitlines()
    for name, act in (
        ("workspace", "--workspace"),
        ("base model", "--set model.base=PATH"),
        ("disk", "free"),
    ):
        (at,) = (index for index, line in enumerate(lines) if line.startswith(f"error   {name}: "))
        assert lines[at + 1].startswith("        -> ") and act in lines[at + 1]


def checks(tmp_path: Path, *overrides: str) -> dict[str, Check]:
    run = load_run("tiny", [f"workspace={tmp_path}", *overrides])
    return {check.name: check for check in diagnose(run)}


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("torch", "2.12.9", "2.12.9, expected <2.15,>=2.13"),
        ("torch", "2.15.0+cu130", "2.15.0+cu130, expected <2.15,>=2.13"),
        ("scipy", "1.2.3", "1.2.3, expected >=1.14"),  # told because it is wrong, else not
        ("ray", None, "not installed"),
    ],
)
def test_a_version_outside_the_packages_bounds_is_an_error(
    package: str, version: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def fake(name: str) -> str:
        if name == package and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == package and version is not None else real(name)

    assert package in checks(tmp_path) or package == "scipy"
    monkeypatch.setattr(importlib.metadata, "version", fake)
    check = checks(tmp_path)[package]
    assert (check.status, check.detail) == ("error", expected)
    assert "make setup" in check.hint


def test_every_requirement_is_compared_and_extras_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Requirement(one) for one in importlib.metadata.requires("echoray") or ()]
    needed = {one.name for one in wanted if one.marker is None}
    monkeypatch.setattr(doctor, "_version_of", lambda *names: None)
    missing = {name for name, check in checks(tmp_path).items() if check.detail == "not installed"}
    assert missing == needed
    assert len(needed) > 25 and "pytest" not in missing and "vllm" not in missing


def test_a_missing_engine_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    engine = checks(tmp_path, "serve.engine=vllm")["serving engine"]
    assert engine.status == "error" and "echoray[vllm]" in engine.hint
    assert checks(tmp_path)["serving engine"].status == "ok"
