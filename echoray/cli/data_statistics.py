"""``echoray data stats``: the statistics page of a run's data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

if TYPE_CHECKING:
    from echoray.storage import Store


def stats(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Also copy the files to this folder.", file_okay=False)
    ] = None,
) -> None:
    """Count the studies and shards; write a page with plots, JSON and CSV."""
    from echoray.cli.steps import pipeline
    from echoray.data.statistics import PAGE_FILE, make_statistics

    if out is not None:
        _make_folder(out)
    with pipeline(resolve(config, overrides, workspace)) as steps:
        ref = make_statistics(steps.run, steps.studies, steps.shards)
        if out is not None:
            _copy(steps.store.at(ref.path), out)
        place = steps.store.uri(ref.path) if out is None else str(out)
        typer.echo(f"{place}/{PAGE_FILE}")


def _make_folder(out: Path) -> None:
    from echoray.errors import UsageError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", hint="name another folder") from None


def _copy(artifact: Store, out: Path) -> None:
    from echoray.artifacts import MANIFEST

    for name in artifact.list():
        if name != MANIFEST:
            artifact.download(name, out / name)
