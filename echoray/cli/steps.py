"""Open the workspace, Ray and the progress display around a chain of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from echoray.config import RunConfig
    from echoray.platform.pipeline import Pipeline
    from echoray.types import ArtifactRef


@contextmanager
def pipeline(run: RunConfig) -> Iterator[Pipeline]:
    """Yield the run's Pipeline inside a locked workspace and a Ray session."""
    from echoray.cli.console import progress_display
    from echoray.platform.pipeline import Pipeline
    from echoray.platform.runtime import ray_session
    from echoray.platform.workspace import locked_workspace

    with locked_workspace(run) as store, ray_session(run.cluster), progress_display() as progress:
        yield Pipeline(run, store, progress)


def tell(steps: Pipeline, ref: ArtifactRef) -> None:
    """Say where an artifact is."""
    typer.echo(steps.store.uri(ref.path))
