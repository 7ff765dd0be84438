"""``echoray model``: export a trained stage, convert and inspect model directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

if TYPE_CHECKING:
    from echoray.model.layout import Layout

app = typer.Typer(help="Export a trained stage; convert and inspect model directories.", no_args_is_help=True)


@app.command()
def export(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    stage: Annotated[str, typer.Option(help="align or finetune.")] = "finetune",
    out: Annotated[
        Path | None, typer.Option(help="Also copy it to this new folder, held-out figures in its card.")
    ] = None,
) -> None:
    """Merge a stage into one model directory that transformers and vLLM load."""
    from echoray.cli.steps import pipeline, tell
    from echoray.platform.hand_over import hand_over

    if stage not in ("align", "finetune"):
        raise typer.BadParameter(f"{stage!r}: expected align or finetune", param_hint="--stage")
    with pipeline(resolve(config, overrides, workspace)) as steps:
        model = steps.model("align" if stage == "align" else "finetune")
        if out is None:
            tell(steps, model)
        elif hand_over(steps.store, model, out):
            typer.echo(f"wrote {out}, with the held-out figures in its card")
        else:
            typer.echo(f"wrote {out}; no evaluation of it is finished, so its card has no held-out figures")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Model directory to read.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: new or empty.")],
    to: Annotated[
        str | None, typer.Option(help="echovlm or released; by default the layout that SOURCE is not in.")
    ] = None,
) -> None:
    """Write an EchoVLM directory in the other layout: the publicly released one, or ours."""
    if to not in (None, "echovlm", "released"):
        raise typer.BadParameter(f"{to!r}: expected echovlm or released", param_hint="--to")
    from echoray.cli.console import progress_display
    from echoray.model.convert import convert_model

    with progress_display() as report:
        made = convert_model(source, out, to=cast("Layout | None", to), progress=report)
    size = f"{made.num_bytes / 1e9:.2f} GB" if made.num_bytes >= 1e9 else f"{made.num_bytes / 1e6:.1f} MB"
    files = f"{made.num_files} file{'s' if made.num_files > 1 else ''}"
    typer.echo(f"wrote {out}: {made.layout} layout, {made.num_tensors} tensors in {files}, {size}")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model directory to read.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a model's parameters, what each stage trains, its experts and a digest of its weights."""
    import json
    from dataclasses import asdict

    from echoray.cli.console import progress_display
    from echoray.cli.tables import print_model
    from echoray.model.facts import inspect_model

    if as_json:  # progress would stand on stdout too
        typer.echo(json.dumps(asdict(inspect_model(folder)), indent=1))
        return
    with progress_display() as report:
        facts = inspect_model(folder, progress=report)
    print_model(facts)
