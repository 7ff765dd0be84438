"""What every Ray job entry point shares: arguments, workspace, Ray, progress in the log, exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from echoray.config import ClusterConfig, load_run
from echoray.platform.failures import ending_of, terminated_like_interrupted
from echoray.platform.pipeline import Pipeline
from echoray.platform.runtime import ray_session
from echoray.platform.workspace import locked_workspace
from echoray.types import ArtifactRef

logger = logging.getLogger(__name__)

Step = Callable[[Pipeline], ArtifactRef]


def run_job(step: Step, purpose: str, argv: Sequence[str] | None = None) -> int:
    """Make the artifact of ``step`` and whatever it needs first; return the exit code.

    0 when it is made, 2 for a user's mistake, 1 for a failure outside of the job, 130 after SIGTERM or
    Ctrl-C. A defect raises.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    arguments = _parser(purpose).parse_args(argv)
    with terminated_like_interrupted():
        try:
            _make(step, arguments.config, arguments.overrides)
        except (Exception, KeyboardInterrupt) as error:
            ending = ending_of(error)
            if ending is None:
                raise
            logger.error("%s\n  hint: %s", ending.message, ending.hint)
            return ending.exit_code
    return 0


def _parser(purpose: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--config", default="tiny", help="preset or YAML file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _make(step: Step, config: str, overrides: Sequence[str]) -> None:
    run = load_run(config, overrides)
    with locked_workspace(run) as store, ray_session(_of_this_job(run.cluster)):
        ref = step(Pipeline(run, store, _log_progress))
        logger.info("artifact %s", store.uri(ref.path))


def _of_this_job(cluster: ClusterConfig) -> ClusterConfig:
    """The configured cluster, or the one that `ray job submit` started this process on (RAY_ADDRESS)."""
    if cluster.ray_address or not os.environ.get("RAY_ADDRESS"):
        return cluster
    return cluster.model_copy(update={"ray_address": "auto"})


def _log_progress(step: str, done: int, total: int | None) -> None:
    logger.info("%s %d/%s", step, done, "?" if total is None else total)
