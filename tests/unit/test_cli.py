"""The command line: fast help, clear errors, exit code 2 for a user's mistake."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from echoray.storage import open_store

# Wide, because usage errors are drawn in a frame that is folded at the width of the terminal.
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "ECHORAY_API_KEY": "a-key"}
ENVIRONMENT.pop("ECHORAY_API_KEY_HASHES", None)


def echoray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echoray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)


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
        (("model", "export", "--stage", "third"), "expected align or finetune"),
        (("serve", "ask", "no-such-frame.png"), "no-such-frame.png"),
        (("serve", "ask", __file__, "--url", "localhost:80"), "is no address"),
        (("serve", "ask", __file__, "--url", "http://[::1"), "is no address"),
        (("serve", "key", "."), "cannot write .: Is a directory"),
        (("serve", "key", "/proc/x/keys"), "cannot write /proc/x/keys"),
        (("serve", "start"), "ECHORAY_API_KEY_HASHES"),
        (("data", "stats", "--out", __file__), "is a file"),
        (("data", "stats", "--out", "/proc/x/stats"), "cannot write /proc/x/stats"),
        (("data", "corpus", "--workspace", "~no-such-user/x"), "home directory"),
        (("data", "corpus", "--workspace", "file://"), "is not supported"),
        (("data", "corpus", "--workspace", ""), "is not supported"),
        (("config", "show", "--config", "[/mm].yaml"), "[/mm].yaml: No such file"),
        (("config", "show", "[/mm]"), "([/mm])"),
        (("model", "inspect", "no-such-folder"), "no-such-folder: not a directory"),
        (("model", "convert", "model", "out", "--to", "other"), "expected echovlm or released"),
    ],
)
def test_a_mistake_names_what_was_wrong_and_exits_2_or_1_without_traceback(
    arguments: tuple[str, ...], expected: str
) -> None:
    done = echoray(*arguments)
    assert expected in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "cannot write to workspace" in expected else 2)


def test_config_show_prints_a_configuration_that_loads_to_the_same_digest(tmp_path) -> None:  # type: ignore[no-untyped-def]
    shown = echoray("config", "show", "--set", "seed=7").stdout
    (tmp_path / "run.yaml").write_text(shown)
    again = echoray("config", "show", "--config", str(tmp_path / "run.yaml")).stdout
    assert again == shown
    assert "seed: 7" in shown


def test_serving_on_a_busy_port_is_refused_before_any_step(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    words = (
        "serve",
        "start",
        "--workspace",
        str(workspace),
        "--set",
        f"serve.api_keys_ref=file:{tmp_path}/keys",
    )
    assert echoray("serve", "key", str(tmp_path / "keys")).returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = echoray(*words, "--set", f"serve.port={port}")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "serve.port=0" in done.stderr
    assert not workspace.exists()


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


def test_a_lock_that_cannot_be_opened_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    done = echoray("data", "corpus", "--workspace", str(tmp_path))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"cannot open {tmp_path}/.lock" in done.stderr


# A hint, a path and a generated answer that rich would read as markup or as emoji.
TRICKY = "a [/mm] mass :heart: below s3://bucket/[bold]x, see 'echoray[vllm]' and [2.1]"


def test_brackets_of_texts_that_are_not_ours_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from echoray.cli.console import fail, progress_display
    from echoray.cli.tables import print_checks
    from echoray.platform.doctor import Check

    assert not print_checks([Check(TRICKY, "error", TRICKY, TRICKY), Check("x", "ok", "fine")])
    printed = capsys.readouterr().out
    assert printed.count(TRICKY) == 3
    assert printed.splitlines()[0].startswith("error ") and printed.splitlines()[2].startswith("ok ")
    fail(TRICKY, TRICKY)
    assert capsys.readouterr().err == f"error: {TRICKY}\nhint: {TRICKY}\n"
    with progress_display() as report:
        report(TRICKY, 1, 1)
    assert TRICKY in capsys.readouterr().out


def test_the_demo_shows_any_reference_and_answer_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import echoray.evaluate
    import echoray.evaluate.pages
    import echoray.serve.client
    from echoray.cli.demo import _answer_one_request
    from echoray.cli.serving import Served

    case = SimpleNamespace(reference="[/ref] :heart:", prompt="Describe it.", image_png=b"")
    monkeypatch.setattr(echoray.evaluate, "sample_case", lambda run, shards: case)
    monkeypatch.setattr(echoray.evaluate.pages, "draw_case", lambda case, answers: b"png")
    monkeypatch.setattr(echoray.serve.client, "ask", lambda *arguments: "12 [/mm] [bold]")
    store = open_store(str(tmp_path / "[red]"))
    steps: Any = SimpleNamespace(run=None, shards=None, store=store)
    _answer_one_request(steps, Served("http://x", "echovlm", "key"))
    printed = capsys.readouterr().out
    assert "[/ref] :heart:" in printed and "12 [/mm] [bold]" in printed
    assert f"{tmp_path}/[red]/demo/answer.png" in printed
    assert store.read_bytes("demo/answer.png") == b"png"
