"""A model directory to hand on: a copy of the artifact whose card also gives the held-out figures."""

from __future__ import annotations

import shutil
from pathlib import Path

from echoray import artifacts
from echoray.errors import InputDataError
from echoray.evaluate.compute import REPORT_FILE
from echoray.evaluate.report import AVERAGE, EvalReport
from echoray.storage import Store
from echoray.types import ArtifactRef

CARD = "README.md"


def hand_over(store: Store, model: ArtifactRef, out: Path) -> bool:
    """Copy ``model`` to ``out`` (new or empty), whole or not at all; whether there were figures for the card.

    Raises InputDataError where ``out`` is taken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputDataError(f"{out}: expected a new or an empty folder", hint="name another --out")
    source = artifacts.fetch(store, model)
    figures = held_out(store, model)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(artifacts.MANIFEST))
    if figures:
        with (partial / CARD).open("a", encoding="utf-8") as card:
            card.write("\n" + figures)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return bool(figures)


def held_out(store: Store, model: ArtifactRef) -> str:
    """Markdown with the averages of every finished evaluation of ``model``; empty where there is none."""
    parts = []
    for evaluation in artifacts.finished(store, "evaluation"):
        if model not in evaluation.parents:
            continue
        report = EvalReport.from_json(store.read_bytes(f"{evaluation.ref.path}/{REPORT_FILE}"))
        label = next(name for name, digest in report.models.items() if digest == model.digest)
        parts.append(_table(report, label, evaluation.ref))
    return "\n".join(parts)


def _table(report: EvalReport, label: str, evaluation: ArtifactRef) -> str:
    lines = [
        f"### Held-out patients (`{evaluation.path}`)",
        "",
        "| Task | Examples | Metric | Mean over systems (0-100) | 95% interval |",
        "|---|---|---|---|---|",
    ]
    for row in report.rows:
        if row.model == label and row.system == AVERAGE:
            interval = "-" if row.interval is None else f"{row.interval[0]:.1f} to {row.interval[1]:.1f}"
            lines.append(f"| {row.task} | {row.num_examples} | {row.metric} | {row.mean:.1f} | {interval} |")
    if label in report.system_accuracy:
        share = f"{100 * report.system_accuracy[label]:.1f}%"
        lines += ["", f"The right system is named in {share} of the generated reports."]
    return "\n".join(lines) + "\n"
