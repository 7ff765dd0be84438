"""Deduplication on Ray decides as one process does, however many actors and however large the blocks."""

from __future__ import annotations

import random

import pytest

from echoray.config.dedup import DedupConfig
from echoray.data.dedup import Deduplicator, deduplicated

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.mark.parametrize(("num_workers", "block"), [(1, 64), (2, 37), (2, 1000)])
def test_blocks_and_actors_change_nothing(num_workers: int, block: int) -> None:
    rng = random.Random(8)
    texts = [" ".join(rng.choices("abcdefghijklm", k=rng.randint(0, 70))) for _ in range(200)]
    for _ in range(200):
        words = rng.choice(texts).split() or ["a"]
        for _ in range(rng.randint(0, len(words) // 3)):
            words[rng.randrange(len(words))] = rng.choice("abcdefghijklm")
        texts.append(" ".join(words))
    rng.shuffle(texts)
    config = DedupConfig()
    expected = list(Deduplicator(config).add(texts))
    assert 50 < sum(one.kept for one in expected) < 350
    assert list(deduplicated(iter(texts), config, num_workers=num_workers, block=block)) == expected
