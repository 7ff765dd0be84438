"""How often each whole number occurs: small enough to keep, exact enough for any quantile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Bin:
    """``count`` values from ``first`` to ``last``, both included."""

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Distribution:
    """Values and how often each occurs."""

    counts: Mapping[int, int]

    @property
    def num_values(self) -> int:
        """How many values there are."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """The average; 0 where there is no value."""
        total = sum(value * count for value, count in self.counts.items())
        return total / self.num_values if self.counts else 0.0

    def quantile(self, share: float) -> int:
        """The smallest value that at least ``share`` (0-1) of all are not above; 0 where there is none."""
        wanted, values = share * self.num_values, sorted(self.counts)
        below = accumulate(self.counts[value] for value in values)
        return next((value for value, so_far in zip(values, below, strict=True) if so_far >= wanted), 0)

    def bins(self, width: int, start: int, stop: int) -> list[Bin]:
        """Neighbouring bins of ``width`` values each, from ``start`` until ``stop`` is covered."""
        return [
            Bin(first, first + width - 1, sum(self.counts.get(one, 0) for one in range(first, first + width)))
            for first in range(start, stop + 1, width)
        ]

    def summary(self) -> dict[str, float]:
        """Number, extremes, quartiles and mean."""
        shares = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
        found = {name: self.quantile(share) for name, share in shares.items()}
        return {"values": self.num_values, **found, "mean": round(self.mean, 2)}


def bin_width(first: int, last: int, max_bins: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50 ... with which ``max_bins`` bins reach from ``first`` to ``last``."""
    needed = math.ceil((last - first + 1) / max_bins)
    scale = 10 ** max(0, len(str(needed)) - 1)
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= needed)
