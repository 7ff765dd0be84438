"""When two texts count as the same."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field

from echoray.config.base import Section


class DedupConfig(Section):
    """A text too close to a kept one is dropped (defaults: She et al., EchoVLM, app. A)."""

    rouge_l: float = Field(0.7, gt=0, le=1, description="F1 above which a text is dropped; 1: no rule")
    simhash_distance: int = Field(
        3, ge=-1, le=7, description="differing bits, at most, of a duplicate; -1: no rule"
    )

    @property
    def rouge_l_fraction(self) -> Fraction:
        """The threshold as it is written, so that no rounding decides."""
        return Fraction(str(self.rouge_l))
