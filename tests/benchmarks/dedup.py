"""Deduplication against Self-Instruct's way and the strongest simple one (python -m tests.benchmarks.dedup).

Texts are real ones and others put together from sentences of the same data set, with a few tokens changed; a
share of them repeats an earlier one with a tenth of its tokens changed. Ours is measured in full, with and
without SimHash. Peers decide by ROUGE-L alone: rouge-score scores pairs one by one; rapidfuzz compares blocks
of 256 with all kept texts, tokens as characters, by LCSseq, and by Indel with the threshold as cutoff, which
is the same F1. They run in full up to ``--full`` texts, where their decisions must be ours, and beyond on a
sample of pairs, from which the time of all pairs of a text with those kept before is worked out (marked ~).
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel, LCSseq
from rouge_score import rouge_scorer

from echoray.config.dedup import DedupConfig
from echoray.data.dedup import Deduplicator
from echoray.data.dedup.fingerprints import tokenize
from tests.benchmarks.timing import timed

_BLOCK = 256
_SAMPLE_QUERIES = 200
_OVER = 0.7 + 1e-9  # an F1 of exactly 7 / 10 may come out a little larger
_CHANGED = 0.1  # share of tokens of a repeated text
_PEERS = ("LCSseq", "Indel, cutoff")


def real_texts(folder: Path) -> list[list[str]]:
    """The answers of each data set of conversations in LLaVA format."""
    sets = []
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text())
        sets.append([one["conversations"][-1]["value"] for one in rows])
    return sets


def drawn_texts(sets: Sequence[Sequence[str]], count: int, repeated: float, seed: int) -> list[str]:
    """``count`` texts, real ones first; ``repeated`` of the others are near copies of an earlier one."""
    rng = random.Random(seed)
    texts = [one for texts in sets for one in texts]
    rng.shuffle(texts)
    texts = texts[:count]
    sentences = [[part + "。" for text in some for part in text.split("。") if part] for some in sets]
    while len(texts) < count:
        if rng.random() < repeated:
            texts.append(changed(rng.choice(texts), _CHANGED, rng))
        else:
            some = rng.choice(sentences)
            picked = "".join(rng.choice(some) for _ in range(rng.randint(1, 6)))
            texts.append(changed(picked, 0.02, rng))
    return texts


def changed(text: str, share: float, rng: random.Random) -> str:
    """Characters replaced by others of the text."""
    letters = list(text)
    for _ in range(round(share * len(letters))):
        letters[rng.randrange(len(letters))] = rng.choice(text)
    return "".join(letters)


def as_characters(texts: Sequence[str]) -> list[str]:
    """One character per token, the same for equal tokens."""
    ids: dict[str, int] = {}
    return ["".join(chr(0x10000 + ids.setdefault(one, len(ids))) for one in tokenize(text)) for text in texts]


def f1_block(queries: Sequence[str], others: Sequence[str], peer: str) -> np.ndarray:
    """F1 of ROUGE-L of each query with each other text."""
    if peer == "LCSseq":
        common = process.cdist(queries, others, scorer=LCSseq.similarity, dtype=np.uint16, workers=1)
        lengths = np.add.outer([len(one) for one in queries], [len(one) for one in others])
        return 2.0 * common / np.maximum(lengths, 1)
    return process.cdist(
        queries, others, scorer=Indel.normalized_similarity, score_cutoff=0.7, dtype=np.float64, workers=1
    )


def peer_kept(strings: Sequence[str], peer: str) -> list[int]:
    """The kept texts by blocks of all-pairs comparison."""
    kept: list[int] = []
    for start in range(0, len(strings), _BLOCK):
        block = strings[start : start + _BLOCK]
        old = f1_block(block, [strings[one] for one in kept], peer) if kept else np.zeros((len(block), 0))
        within = f1_block(block, block, peer)
        fresh: list[int] = []
        for row, found in enumerate(old):
            if not (found > _OVER).any() and not (within[row, fresh] > _OVER).any():
                fresh.append(row)
        kept += [start + row for row in fresh]
    return kept


def peer_seconds(strings: Sequence[str], kept: Sequence[int], pairs: int, peer: str, seed: int) -> float:
    """The time of ``pairs`` pairs, from a sample of queries against kept texts."""
    rng = random.Random(seed)
    queries = rng.sample(list(strings), min(_SAMPLE_QUERIES, len(strings)))
    others = [strings[one] for one in rng.sample(list(kept), min(len(kept), 10_000))]
    seconds, _ = timed(lambda: f1_block(queries, others, peer))
    return seconds / (len(queries) * len(others)) * pairs


def rouge_score_rate(texts: Sequence[str]) -> float:
    """Pairs per second of the rouge-score package."""

    class Tokens:
        def tokenize(self, text: str) -> list[str]:
            return tokenize(text)

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Tokens())
    some = texts[:40]
    seconds, _ = timed(lambda: [scorer.score(one, other) for one in some for other in some])
    return len(some) ** 2 / seconds


def ours(texts: Sequence[str], *, simhash: bool) -> tuple[float, Deduplicator, list[int], int]:
    """Seconds, the engine, the kept texts, and the pairs of a text with those kept before it."""
    engine = Deduplicator(DedupConfig() if simhash else DedupConfig(simhash_distance=-1))
    seconds, decisions = timed(lambda: list(engine.add(texts)))
    kept, pairs = [], 0
    for number, one in enumerate(decisions):
        pairs += len(kept)
        if one.kept:
            kept.append(number)
    return seconds, engine, kept, pairs


def compare(texts: Sequence[str], full: int) -> tuple[float, str]:
    """Our seconds, and a row of the table."""
    with_simhash, _, _, _ = ours(texts, simhash=True)
    seconds, engine, kept, pairs = ours(texts, simhash=False)
    strings = as_characters(texts)
    cells = [f"{len(texts):,}", f"{len(kept):,}", f"{pairs:,}"]
    avoided = 1 - engine.compared["subsequence"] / max(1, pairs)
    cells += [f"{avoided:.2%}", f"{seconds:.2f} s", f"{with_simhash:.2f} s", f"{len(texts) / seconds:,.0f}"]
    for peer in _PEERS:
        if len(texts) <= full:
            theirs, their_kept = timed(partial(peer_kept, strings, peer))
            assert their_kept == kept, f"{peer} decides differently"
            mark = ""
        else:
            theirs, mark = peer_seconds(strings, kept, pairs, peer, seed=1), "~"
        cells.append(f"{mark}{theirs:,.1f} s, {theirs / seconds:,.0f} x")
    cells.append(f"~{pairs / rouge_score_rate(texts) / seconds:,.0f} x")
    return seconds, " | ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="folder of conversations in LLaVA format")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 10_000, 50_000, 100_000])
    parser.add_argument("--repeated", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--full", type=int, default=10_000, help="largest size at which peers run in full")
    given = parser.parse_args()
    sets = real_texts(given.texts)
    list(Deduplicator().add([text for texts in sets for text in texts[:50]]))  # compiled
    print("| repeated | texts | kept | pairs | avoided | ours | with SimHash | texts/s |", end="")
    print(" LCSseq | Indel, cutoff | rouge-score | exponent |")
    print("|" + "---|" * 12)
    for repeated in given.repeated:
        last: tuple[int, float] | None = None
        for size in given.sizes:
            seconds, row = compare(drawn_texts(sets, size, repeated, seed=7), given.full)
            grown = math.log(seconds / last[1]) / math.log(size / last[0]) if last else math.nan
            last = size, seconds
            print(f"| {repeated:.0%} | {row} | {grown:.2f} |", flush=True)


if __name__ == "__main__":
    main()
