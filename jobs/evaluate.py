"""Ray job: held-out figures of the base and of both training stages."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.entry import run_job


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, after the steps that are missing before it."""
    return run_job(lambda steps: steps.evaluation, "Evaluation on held-out patients.", argv)


if __name__ == "__main__":
    sys.exit(main())
