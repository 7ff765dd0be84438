"""``echoray data dedup``: every line is kept, dropped or refused, and an index goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echoray.cli.app import app

ONE = "The liver is enlarged with a smooth margin and a homogeneous bright texture throughout."
NEAR = ONE.replace("smooth", "regular")
OTHER = "Both kidneys have a normal size; no stone and no hydronephrosis is seen."


def run(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "dedup", *map(str, words)])
    return done.exit_code, done.output


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_kept_dropped_or_refused_and_all_are_counted(tmp_path: Path) -> None:
    source, out, dropped = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "dropped.jsonl"))
    given = [json.dumps({"id": n, "answer": text}) for n, text in enumerate((ONE, NEAR, OTHER, ONE))]
    source.write_text("\n".join([*given, "{broken", '{"answer": 7}', "[]"]))
    words = ("--field", "answer", "--dropped", dropped)
    code, output = run(source, "--out", out, *words)
    assert code == 0 and "7 lines, 2 kept; not kept: 3 malformed, 2 rouge_l" in output
    assert [one["id"] for one in lines(out)] == [0, 2]
    assert lines(dropped) == [
        {"line": 2, "reason": "rouge_l", "first_similar": 0},
        {"line": 4, "reason": "rouge_l", "first_similar": 0},
        *({"line": number, "reason": "malformed"} for number in (5, 6, 7)),
    ]


def test_an_index_remembers_earlier_files(tmp_path: Path) -> None:
    index = tmp_path / "kept.parquet"
    for number, (text, kept) in enumerate([(ONE, 1), (NEAR, 0), (OTHER, 1), (OTHER, 0)]):
        source, out = tmp_path / f"{number}.jsonl", tmp_path / f"{number}.out"
        source.write_text(json.dumps({"text": text}))
        assert run(source, "--out", out, "--index", index)[0] == 0
        assert len(lines(out)) == kept


def test_the_rules_are_configured(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in (ONE, NEAR)))
    none = ("--set", "data.dedup.rouge_l=1", "--set", "data.dedup.simhash_distance=-1")
    assert run(source, "--out", out, *none)[0] == 0
    assert len(lines(out)) == 2


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_source_that_is_no_file_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["data", "dedup", str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert done.exception is not None and str(tmp_path / name) in str(done.exception)
    assert not (tmp_path / "out").exists()
