"""``echoray data review``: experts look at a sample of the generated items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

if TYPE_CHECKING:
    from echoray.config import RunConfig
    from echoray.storage import Store
    from echoray.types import ArtifactRef

app = typer.Typer(help="Have experts review a sample of the generated items.", no_args_is_help=True)

SampleOption = Annotated[
    str | None, typer.Option("--sample", help="review-sample/NAME-DIGEST; else the only one that is there.")
]


@app.command()
def serve(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    sample: SampleOption = None,
    host: Annotated[str, typer.Option(help="Put TLS before any other than this.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8265,
    token_ref: Annotated[
        str | None, typer.Option("--token-ref", help="env:NAME or file:PATH; else one is made.")
    ] = None,
) -> None:
    """Serve the review page until Ctrl-C; every decision is kept at once."""
    import secrets

    from echoray.config import secret
    from echoray.data.instruct.review_server import serve_review

    store, ref = _sample(resolve(config, overrides, workspace), sample)
    token = secret(token_ref) if token_ref else secrets.token_urlsafe(24)
    serve_review(store, ref, host=host, port=port, token=token, started=typer.echo)


@app.command("export")
def export_(
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl|OUT.csv")],
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    sample: SampleOption = None,
) -> None:
    """Write the sample to a file, to be reviewed elsewhere."""
    from echoray.data.instruct.review import read_sample
    from echoray.data.instruct.review_files import export_sample

    store, ref = _sample(resolve(config, overrides, workspace), sample)
    items = read_sample(store, ref)
    export_sample(items, target)
    typer.echo(f"{target}: {len(items)} items; fill in choice (accept, reject, edit), reason, new_*")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl|IN.csv")],
    reviewer: Annotated[str, typer.Option(help="Who decided, e.g. reader-1.")],
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    sample: SampleOption = None,
) -> None:
    """Take the decisions of a file: all of them, or none where a line has a defect."""
    from echoray.data.instruct.review import read_sample
    from echoray.data.instruct.review_files import import_decisions

    store, ref = _sample(resolve(config, overrides, workspace), sample)
    number = import_decisions(store, ref, read_sample(store, ref), source, reviewer)
    typer.echo(f"{number} new decisions by {reviewer}")


def _sample(run: RunConfig, path: str | None) -> tuple[Store, ArtifactRef]:
    """The sample that is named, or the only one."""
    from echoray.data.instruct.review import find_sample
    from echoray.storage import store_of

    store = store_of(run)
    return store, find_sample(store, path)
