"""Ray job: stage 2, which trains the experts and low-rank adapters on the base."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.entry import run_job


def main(argv: Sequence[str] | None = None) -> int:
    """Run stage 2 and the steps that are missing before it."""
    return run_job(lambda steps: steps.finetune, "Stage 2 of EchoVLM's training.", argv)


if __name__ == "__main__":
    sys.exit(main())
