"""``echoray train``: the two stages and the export."""

from __future__ import annotations

from typing import Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

app = typer.Typer(help="Train EchoVLM in two stages and export it.", no_args_is_help=True)


@app.command()
def align(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Stage 1: train only the experts, the router and the mixing coefficients."""
    from echoray.cli.steps import pipeline

    with pipeline(resolve(config, overrides, workspace)) as steps:
        typer.echo(steps.store.uri(steps.align.path))


@app.command()
def finetune(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Stage 2: train the experts, and LoRA on the base."""
    from echoray.cli.steps import pipeline

    with pipeline(resolve(config, overrides, workspace)) as steps:
        typer.echo(steps.store.uri(steps.finetune.path))


@app.command()
def export(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    stage: Annotated[str, typer.Option(help="align or finetune.")] = "finetune",
) -> None:
    """Merge a stage into one model directory that transformers and vLLM load."""
    from echoray.cli.steps import pipeline

    if stage not in ("align", "finetune"):
        raise typer.BadParameter(f"{stage!r}: expected align or finetune", param_hint="--stage")
    with pipeline(resolve(config, overrides, workspace)) as steps:
        typer.echo(steps.store.uri(steps.model("align" if stage == "align" else "finetune").path))
