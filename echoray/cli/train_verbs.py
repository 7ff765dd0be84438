"""``echoray train``: the two stages."""

from __future__ import annotations

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

app = typer.Typer(help="Train EchoVLM in two stages.", no_args_is_help=True)


@app.command()
def align(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Stage 1: train only the experts, the router and the mixing coefficients."""
    from echoray.cli.steps import pipeline, tell

    with pipeline(resolve(config, overrides, workspace)) as steps:
        tell(steps, steps.align)


@app.command()
def finetune(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Stage 2: train the experts, and LoRA on the base."""
    from echoray.cli.steps import pipeline, tell

    with pipeline(resolve(config, overrides, workspace)) as steps:
        tell(steps, steps.finetune)
