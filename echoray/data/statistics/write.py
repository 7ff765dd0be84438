"""The statistics of a run as files: a page for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.statistics.collect import Cases, Examples, Pictures, Statistics, collect
from echoray.data.statistics.page import render_page
from echoray.storage import store_of
from echoray.types import ArtifactRef

PAGE_FILE = "statistics.html"
_REVISION = 1  # count up when a change of the code changes what is written


def make_statistics(run: RunConfig, studies: ArtifactRef, shards: ArtifactRef) -> ArtifactRef:
    """Count two finished artifacts (artifact kind "statistics"), or return the finished statistics."""
    store = store_of(run)
    artifacts.require(store, studies, made_by="echoray data prepare")
    artifacts.require(store, shards, made_by="echoray data tokenize")
    config = {"revision": _REVISION}
    ref = artifacts.plan("statistics", run.name, config=config, parents=[studies, shards])

    def build(folder: Path) -> Mapping[str, Any]:
        found = collect(store, studies, shards)
        write_statistics(run.name, found, folder)
        return {
            "studies": sum(one.num_studies for one in found.cases),
            "examples": sum(one.num_examples for one in found.examples),
        }

    artifacts.produce(store, ref, build, config=config, parents=[studies, shards])
    return ref


def write_statistics(name: str, found: Statistics, folder: Path) -> None:
    """Write statistics.html, stats.json and the CSV tables to ``folder``."""
    (folder / PAGE_FILE).write_text(render_page(name, found), encoding="utf-8")
    (folder / "stats.json").write_text(found.to_json(), encoding="utf-8")
    _write_csv(folder / "cases.csv", _names(Cases), map(astuple, found.cases))
    _write_csv(folder / "examples.csv", _names(Examples), map(astuple, found.examples))
    _write_csv(folder / "image_sizes.csv", _names(Pictures), map(astuple, found.pictures))
    _write_csv(
        folder / "lengths.csv",
        ("measure", "value", "count"),
        (
            (measure, value, count)
            for measure, one in found.lengths.items()
            for value, count in one.counts.items()
        ),
    )
    _write_csv(
        folder / "quarantine.csv",
        ("step", "reason", "records"),
        ((row["step"], reason, num) for row in found.ledger for reason, num in row["quarantined"].items()),
    )


def _names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(head)
        writer.writerows(rows)
