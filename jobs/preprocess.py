"""Ray job: from raw studies to tokenized shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.entry import run_job


def main(argv: Sequence[str] | None = None) -> int:
    """De-identify, filter, split, converse and tokenize."""
    return run_job(lambda steps: steps.shards, "From raw studies to tokenized shards.", argv)


if __name__ == "__main__":
    sys.exit(main())
