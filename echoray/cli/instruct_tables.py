"""Tables of ``echoray data instruct``: estimates, spending, rejection rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from echoray.cli.console import console

if TYPE_CHECKING:
    from echoray.data.instruct.estimate import Estimate
    from echoray.data.instruct.feedback import Rate
    from echoray.data.instruct.rounds import Reviewed
    from echoray.platform.pipeline import Pipeline
    from echoray.types import ArtifactRef


def print_estimates(estimates: Iterable[Estimate], latency_s: float) -> None:
    """Print what each member would be asked, and the sum of the costs."""
    found = list(estimates)
    table = _table(
        "Still to be answered", "member", "requests", "answered", "tokens in", "tokens out", "cost", "hours"
    )
    for one in found:
        duration_s = one.duration_s(latency_s)
        table.add_row(
            one.member.name,
            str(one.requests),
            str(one.answered),
            f"{one.tokens_in:,}",
            f"{one.tokens_out:,}",
            _money(one.cost),
            "-" if duration_s is None else f"{duration_s / 3600:.2f}",
        )
    console.print(table)
    console.print(f"cost in all: {_money(sum(one.cost or 0 for one in found))}")
    console.print(f"tokens are estimates; hours: at {latency_s:g} s for an answer, within the limits")


def print_spending(steps: Pipeline, candidates: ArtifactRef) -> None:
    """Print what each member was asked and what it took, by the services' own count of tokens."""
    from echoray import artifacts
    from echoray.config.instruct import OpenAIMember

    manifest = artifacts.require(steps.store, candidates, made_by="echoray data instruct generate")
    members = {one.name: one for one in steps.run.instruct.members}
    table = _table(
        "Spent (retries included)", "member", "requests", "answers", "tokens in", "tokens out", "cost"
    )
    for name, spent in manifest.counts["spent"].items():
        member = members.get(name)
        read, written = spent.get("tokens_in", 0), spent.get("tokens_out", 0)
        cost = member.cost(read, written) if isinstance(member, OpenAIMember) else None
        answers = str(spent.get("answers", "-"))
        table.add_row(name, str(spent["requests"]), answers, f"{read:,}", f"{written:,}", _money(cost))
    console.print(table)


def print_review(reviewed: Reviewed) -> None:
    """Print a round's rates, of sets, models and templates, and which sets they suspend."""
    number = reviewed.generated.turn.attempt + 1
    decided = len(reviewed.sampled) - reviewed.num_open
    console.print(f"round {number}: {decided} of {len(reviewed.sampled)} sampled items decided")
    found = reviewed.feedback
    if found.overall is None:
        return
    table = _table(
        "Rejected by experts", "model", "template", "reviewed", "rejected", "edited", "share", "interval"
    )
    for rate in (*found.sets, *found.models, *found.templates, found.overall):
        table.add_row(*_cells(rate))
    console.print(table)
    for one in found.suspensions:
        console.print(
            f"suspended: {one.model}, {one.template}; finish has it made again by members with another model"
        )


def _table(title: str, *columns: str) -> Table:
    """An empty table: names to the left, figures to the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("member", "model", "template") else "right")
    return table


def _cells(rate: Rate) -> tuple[str, ...]:
    counts = (str(one) for one in (rate.reviewed, rate.rejected, rate.edited))
    interval = f"{rate.low:.1%} to {rate.high:.1%}"
    return (rate.model or "all", rate.template or "all", *counts, f"{rate.share:.1%}", interval)


def _money(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:,.2f}"
