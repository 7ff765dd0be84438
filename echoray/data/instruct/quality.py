"""The ledger of quality control: raw, deduplicated, pre-screened, reviewed, suspended, kept.

She et al., EchoVLM, appendix A: quality control takes 3.42 million raw instructions to 1.8 million.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from echoray.errors import ArtifactError
from echoray.types import Ledger

TOTAL = "instruct"


def quality_chain(steps: Sequence[Ledger]) -> tuple[Ledger, ...]:
    """The steps' ledgers and, last, one from the first's input to the last's output.

    The total's reasons are named "step: reason". Each ledger reconciles by its type; ArtifactError where a
    step did not take in what the one before it gave out: they are of different versions of the data.
    """
    for before, after in pairwise(steps):
        if before.records_out != after.records_in:
            raise ArtifactError(
                f"{before.step} gave {before.records_out} items and {after.step} took {after.records_in}",
                hint="the steps are of different versions: run them again",
            )
    if not steps:
        return ()
    lost = {f"{one.step}: {reason}": count for one in steps for reason, count in one.quarantined.items()}
    return (*steps, Ledger(TOTAL, steps[0].records_in, steps[-1].records_out, lost))
