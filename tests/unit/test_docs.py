"""What the documentation shows must exist: links, files and commands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from echoray.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")
BLOCK = re.compile(r"```console\n(.*?)```", re.S)
SOURCES = sorted(path for part in ("echoray", "jobs", "services") for path in (ROOT / part).rglob("*.py"))
QUOTED = re.compile(r"`+(echoray [^`]*)`")
LIGHT = ("config show", "config diff", "config schema", "--help", "--version")


def commands(page: Path) -> list[str]:
    lines = [line for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    return [line.split("  #")[0].removeprefix("$ ").strip() for line in lines if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "command",
    sorted({c for page in PAGES for c in commands(page) if c.startswith(("echoray ", "python -m "))}),
)
def test_a_shown_command_exists_and_light_ones_run(command: str) -> None:
    words = shlex.split(command)
    words = (
        [sys.executable, "-m", "echoray", *words[1:]]
        if words[0] == "echoray"
        else [sys.executable, *words[1:]]
    )
    light = any(mark in command for mark in LIGHT)
    if not light:  # the verb and every option it is shown with must be known
        options = [word for word in words if word.startswith("--")]
        verb = words[:3] + [w for w in words[3:6] if re.fullmatch(r"[a-z]+(-[a-z]+)*", w)]
        words = [*verb, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode in ((0, 1) if "config diff" in command else (0,)), done.stderr
    if not light:
        assert all(option in done.stdout for option in options), done.stdout


def test_make_targets_named_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {c.split()[1] for page in PAGES for c in commands(page) if c.startswith("make ")}
    assert named
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)


def test_every_name_in_a_file_that_a_page_points_to_is_defined_there() -> None:
    named = {one for page in PAGES for one in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text())}
    assert len(named) > 15
    for file, name in sorted(named):
        path = next(root / file for root in (ROOT / "echoray", ROOT / "tests") if (root / file).is_file())
        assert re.search(rf"^(def|class) {name}\b", path.read_text(), re.M), f"{file}::{name}"


def test_no_page_of_the_project_names_a_path_outside_of_it() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|root|home)/", page.read_text()), page.name


def named_commands() -> dict[str, Path]:
    """`echoray ...` in backticks in pages, hints and docstrings, and strings that are put into hints."""
    found = {command: page for page in PAGES for command in QUOTED.findall(page.read_text())}
    for path in SOURCES:
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = [
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        whole = [text for text in texts if re.fullmatch(r"echoray( [a-z]+)+( --\S+ \S+)*", text)]
        found |= {command: path for text in texts for command in [*whole, *QUOTED.findall(text)]}
    return found


def test_every_command_in_a_hint_a_docstring_or_a_page_is_one_that_the_command_line_takes() -> None:
    found = named_commands()
    assert {"echoray serve key FILE", "echoray config show --config tiny", "echoray data tokenize"} <= set(
        found
    )
    for command, path in found.items():
        verb: Any = get_command(app)
        words, parent = shlex.split(command)[1:], None
        while words and hasattr(verb, "commands"):
            assert words[0] in verb.commands, f"{path}: {command}"
            parent = verb.make_context("echoray", [words[0]], parent=parent, resilient_parsing=True)
            verb, words = verb.commands[words[0]], words[1:]
        if words:
            verb.make_context(verb.name, words, parent=parent)  # raises on what it does not take
