"""What every Ray job entry point shares: arguments, workspace, Ray, progress in the log, exit code."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from echoray.config import load_run
from echoray.errors import EchoRayError
from echoray.platform.pipeline import Pipeline
from echoray.platform.runtime import ray_session
from echoray.platform.workspace import locked_workspace
from echoray.types import ArtifactRef

logger = logging.getLogger(__name__)


def run_job(step: Callable[[Pipeline], ArtifactRef], purpose: str, argv: Sequence[str] | None = None) -> int:
    """Make the artifact of ``step`` and whatever it needs first; 0, or the exit code of an EchoRayError."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--config", default="tiny", help="preset or YAML file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)
    try:
        run = load_run(arguments.config, arguments.overrides)
        with locked_workspace(run) as store, ray_session(run.cluster):
            ref = step(Pipeline(run, store, _log_progress))
            logger.info("artifact %s", store.uri(ref.path))
    except EchoRayError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0


def _log_progress(step: str, done: int, total: int | None) -> None:
    logger.info("%s %d/%s", step, done, "?" if total is None else total)
