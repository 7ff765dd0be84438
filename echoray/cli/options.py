"""The options that every verb shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echoray.config import RunConfig

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="Preset (tiny, echovlm_3b, echovlm_11b) or a YAML file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key; repeatable.")
]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", "-w", help="Folder, file:// or s3:// root of all artifacts.")
]


def resolve(config: str, overrides: list[str] | None, workspace: str | None = None) -> RunConfig:
    """The RunConfig that the shared options describe."""
    from echoray.config import load_run

    run = load_run(config, overrides or [])
    return run.merged({"workspace": workspace}) if workspace is not None else run
