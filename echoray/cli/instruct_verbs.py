"""``echoray data instruct``: instruction data from the clean studies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

if TYPE_CHECKING:
    from echoray.data.instruct.estimate import Estimate

app = typer.Typer(help="Generate instruction data and control its quality.", no_args_is_help=True)


@app.command()
def plan(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    latency_s: Annotated[
        float, typer.Option("--latency", min=0.01, help="Seconds that an endpoint takes for an answer.")
    ] = 8.0,
) -> None:
    """Estimate requests, tokens, cost and time of the first round; nothing is sent."""
    from echoray.cli.instruct_tables import print_estimates
    from echoray.cli.steps import pipeline
    from echoray.data.instruct.estimate import estimate
    from echoray.data.instruct.requests import Round

    with pipeline(resolve(config, overrides, workspace)) as steps:
        found: list[Estimate] = estimate(steps.rounds.assignment(Round(), []), steps.progress)
    print_estimates(found, latency_s)


@app.command()
def generate(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Make items, drop near duplicates, pre-screen them, draw the sample for experts; one round."""
    from echoray.cli.instruct_tables import print_spending
    from echoray.cli.steps import pipeline, tell
    from echoray.cli.tables import print_ledger_rows
    from echoray.data.instruct.requests import Round

    with pipeline(resolve(config, overrides, workspace)) as steps:
        made = steps.rounds.generated(Round(), [])
        print_ledger_rows(made.ledgers(steps.store))
        print_spending(steps, made.candidates)
        tell(steps, made.screened)
        if made.sample is not None:
            tell(steps, made.sample)
            typer.echo("next: echoray data review serve (experts), then echoray data instruct finish")


@app.command()
def status(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Print each round's rejection rates with their intervals, and what they suspend."""
    from echoray.cli.instruct_tables import print_review
    from echoray.cli.steps import pipeline

    with pipeline(resolve(config, overrides, workspace)) as steps:
        found = list(steps.rounds.begun())
    for one in found:
        print_review(one)
    if not found:
        typer.echo("nothing was generated yet: echoray data instruct generate")


@app.command()
def finish(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Apply the decisions of now, make suspended sets again, write what is trained on; print the ledger."""
    from echoray.cli.instruct_tables import print_review
    from echoray.cli.steps import pipeline, tell
    from echoray.cli.tables import print_ledger

    with pipeline(resolve(config, overrides, workspace)) as steps:
        kept = steps.conversations
        for one in steps.reviewed:
            print_review(one)
        print_ledger(steps, kept)
        tell(steps, kept)
    if not steps.run.instruct.enabled:
        typer.echo("training uses it with -s instruct.enabled=true")
