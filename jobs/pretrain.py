"""Ray job: stage 1, which trains only the experts, the router and the mixing coefficients."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.entry import run_job


def main(argv: Sequence[str] | None = None) -> int:
    """Run stage 1 and the data steps that are missing before it."""
    return run_job(lambda steps: steps.align, "Stage 1 of EchoVLM's training.", argv)


if __name__ == "__main__":
    sys.exit(main())
