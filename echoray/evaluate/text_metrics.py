"""BLEU-1, ROUGE-1 and ROUGE-L on a 0-100 scale, for English, Chinese and mixtures of both.

Each is the score of one pair; a table's figure is the mean over pairs. On English ROUGE equals rouge-score
0.1.2 (F1, no stemming) and BLEU-1 equals nltk's sentence_bleu with weights (1,) on the same tokens: clipped
unigram precision times the brevity penalty, one reference, no smoothing (no common token: 0).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from types import MappingProxyType

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_TOKEN = re.compile(f"[a-z0-9]+|[{_HAN}]")
_FULLWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}

Metric = Callable[[Sequence[str], Sequence[str]], float]


def tokens(text: str) -> list[str]:
    """Lower-case runs of ASCII letters and digits (as rouge-score cuts them), each Chinese character alone.

    Full-width forms count as their ASCII ones.
    """
    return _TOKEN.findall(text.translate(_FULLWIDTH).lower())


def bleu_1(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """Clipped unigram precision times the brevity penalty (Papineni et al., 2002), 0-100."""
    if not prediction:
        return 0.0
    precision = _overlap(reference, prediction) / len(prediction)
    brevity = min(1.0, math.exp(1 - len(reference) / len(prediction)))
    return 100 * brevity * precision


def rouge_1(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """F1 of the common unigrams (Lin, 2004), 0-100."""
    return _f1(_overlap(reference, prediction), reference, prediction)


def rouge_l(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """F1 of the longest common subsequence over the whole text (Lin, 2004), 0-100."""
    return _f1(lcs_length(reference, prediction), reference, prediction)


METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {"bleu_1": bleu_1, "rouge_1": rouge_1, "rouge_l": rouge_l}
)


def score(reference: str, prediction: str) -> tuple[float, ...]:
    """All metrics of one pair, in the order of ``METRICS``."""
    expected, found = tokens(reference), tokens(prediction)
    return tuple(metric(expected, found) for metric in METRICS.values())


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; one big-integer row per token of ``second`` (Hyyro, 2004)."""
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        match = row & positions.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(first) - row.bit_count()


def _overlap(reference: Sequence[str], prediction: Sequence[str]) -> int:
    return (Counter(reference) & Counter(prediction)).total()


def _f1(common: int, reference: Sequence[str], prediction: Sequence[str]) -> float:
    length = len(reference) + len(prediction)
    return 200 * common / length if length else 0.0
