"""Tables that verbs print: the ledger, the evaluation, the machine check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from echoray.cli.console import console
from echoray.types import Ledger

if TYPE_CHECKING:
    from echoray.evaluate import EvalReport
    from echoray.model.facts import ModelFacts
    from echoray.platform.doctor import Check
    from echoray.platform.pipeline import Pipeline
    from echoray.types import ArtifactRef

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def print_ledger(steps: Pipeline, *refs: ArtifactRef) -> None:
    """Print what went in, came out, was quarantined (with the reasons) and shortened in each data step."""
    from echoray.data.ledger import read_ledger

    print_ledger_rows(row for ref in refs for row in read_ledger(steps.store, ref.path))


def print_ledger_rows(rows: Iterable[Ledger]) -> None:
    """Print the counts of each step, why there is something in quarantine, and what was shortened."""
    table = Table(title="Ledger: in = out + quarantined", title_justify="left")
    for column in ("step", "in", "out", "quarantined", "reasons", "shortened"):
        table.add_column(column, justify="left" if column in ("step", "reasons", "shortened") else "right")
    for row in rows:
        counts = (row.records_in, row.records_out, sum(row.quarantined.values()))
        table.add_row(row.step, *map(str, counts), _counted(row.quarantined), _counted(row.shortened))
    console.print(table)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def print_evaluation(steps: Pipeline) -> EvalReport:
    """Print the held-out figures per system and model; return the report."""
    from echoray.evaluate import load_report

    report = load_report(steps.run, steps.evaluation)
    console.print(steps.store.read_bytes(f"{steps.evaluation.path}/table.md").decode())
    console.print(f"saved: {steps.store.uri(steps.evaluation.path)}/report.html", soft_wrap=True)
    return report


def print_checks(checks: Iterable[Check]) -> bool:
    """Print each check as it is made; False when any is an error."""
    good = True
    for check in checks:
        mark = (f"{check.status:<8}", _COLOURS[check.status])
        console.print(Text.assemble(mark, f"{check.name}: {check.detail}"), soft_wrap=True)
        if check.hint:
            console.print(f"        -> {check.hint}", soft_wrap=True)
        good = good and check.status != "error"
    return good


def print_model(facts: ModelFacts) -> None:
    """Print the parameters of a model by part, what its stages train, and what else was found."""
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for part, count in facts.parameters.items():
        table.add_row(part, f"{count:,}", end_section=part == "experts")
    for stage, count in facts.trainable.items():
        table.add_row(f"trained by {stage}", f"{count:,}")
    console.print(table)
    rows = {"layout": facts.layout, "dtype": ", ".join(facts.dtypes), "layers": f"{facts.layers}"}
    if facts.mix is None:
        rows["experts"] = "none: a dense model"
    else:
        where = ", ".join(map(str, facts.expert_layers))
        everywhere = len(facts.expert_layers) == facts.layers
        rows |= {
            "mix": facts.mix,
            "experts": f"{facts.experts} per layer, {facts.experts_per_token} per token",
            "layers with experts": "all" if everywhere else where,
        }
    for name, value in (rows | {"digest": f"sha256 {facts.digest}"}).items():
        console.print(f"{name}: {value}", soft_wrap=True)
