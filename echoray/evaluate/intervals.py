"""Bootstrap intervals of mean scores; whole studies are resampled, since their examples depend on each other.

Shape legend: N examples, M metrics, K studies, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (2.5, 97.5)


def resampled_means(
    scores_NM: NDArray[np.float64], studies: Sequence[str], num_samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means (S, M) over ``num_samples`` resamples of the studies, drawn with replacement."""
    _, study_N = np.unique(np.asarray(studies), return_inverse=True)
    num_studies = int(study_N.max()) + 1
    sums_KM = np.zeros((num_studies, scores_NM.shape[1]))
    np.add.at(sums_KM, study_N, scores_NM)
    counts_K = np.bincount(study_N, minlength=num_studies)
    # How often each study is drawn: multinomial counts are the same as drawing indices, in less memory.
    drawn_SK = rng.multinomial(num_studies, np.full(num_studies, 1 / num_studies), size=num_samples)
    means_SM: NDArray[np.float64] = (drawn_SK @ sums_KM) / (drawn_SK @ counts_K)[:, None]
    return means_SM


def percentile_interval(means_SM: NDArray[np.float64]) -> list[tuple[float, float] | None]:
    """The 95% percentile interval per metric; None each where there were no resamples."""
    if not len(means_SM):
        return [None] * means_SM.shape[1]
    low_M, high_M = np.percentile(means_SM, PERCENTILES, axis=0)
    return [(float(low), float(high)) for low, high in zip(low_M, high_M, strict=True)]
