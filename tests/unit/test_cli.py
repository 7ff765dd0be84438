"""The command line: fast help, clear errors, exit code 2 for a user's mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest


def echoray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "echoray", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_imports_no_framework() -> None:
    code = (
        "import sys, echoray.cli.app;"
        "heavy = {'torch', 'ray', 'transformers', 'mlflow', 'numpy', 'pydantic', 'fastapi'};"
        "heavy &= set(sys.modules);"
        "sys.exit(','.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("config", "show", "--set", "train.num_worker=3"), "did you mean 'train.num_workers'?"),
        (("config", "show", "--config", "tinny"), "did you mean 'tiny'?"),
        (("config", "show", "--config", "missing.yaml"), "No such file"),
        (("config", "show", "--set", "train.num_workers"), "expected KEY=VALUE"),
        (("config", "show", "--set", "train.num_workers=zero"), "valid integer"),
        (("demo", "--language", "fr"), "'en' or 'zh'"),
        (("demo", "--workspace", "ftp://host/x"), "is not supported"),
        (("demo", "--workspace", "/proc/echoray"), "cannot write to workspace"),
        (("train", "export", "--stage", "third"), "expected align or finetune"),
        (("serve", "ask", "no-such-frame.png"), "no-such-frame.png"),
    ],
)
def test_a_mistake_names_what_was_wrong_and_exits_2_or_1_without_traceback(
    arguments: tuple[str, ...], expected: str
) -> None:
    done = echoray(*arguments)
    assert expected in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "cannot write" in expected else 2)


def test_config_show_prints_a_configuration_that_loads_to_the_same_digest(tmp_path) -> None:  # type: ignore[no-untyped-def]
    shown = echoray("config", "show", "--set", "seed=7").stdout
    (tmp_path / "run.yaml").write_text(shown)
    again = echoray("config", "show", "--config", str(tmp_path / "run.yaml")).stdout
    assert again == shown
    assert "seed: 7" in shown


def test_config_diff_lists_changed_keys_and_exits_1() -> None:
    done = echoray("config", "diff", "tiny", "echovlm_11b")
    assert done.returncode == 1
    assert "train.num_workers: 2 -> 8" in done.stdout
    assert echoray("config", "diff", "tiny", "tiny").returncode == 0


def test_a_second_writer_of_a_workspace_is_refused_at_once(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from echoray.config import load_run
    from echoray.platform.workspace import locked_workspace

    run = load_run("tiny").merged({"workspace": str(tmp_path)})
    with locked_workspace(run):
        done = echoray("demo", "--workspace", str(tmp_path))
    assert done.returncode == 2
    assert "in use by process" in done.stderr
