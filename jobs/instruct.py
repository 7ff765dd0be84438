"""Ray job: from clean studies to instruction data that passed quality control."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.entry import run_job


def main(argv: Sequence[str] | None = None) -> int:
    """Generate, deduplicate, pre-screen, draw the sample, apply the decisions of now."""
    purpose = "From clean studies to instruction data that passed quality control."
    return run_job(lambda steps: steps.conversations, purpose, argv)


if __name__ == "__main__":
    sys.exit(main())
