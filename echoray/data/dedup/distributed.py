"""The same decisions by several Ray actors, each of which holds a part of the kept texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any

from echoray.config.dedup import DedupConfig
from echoray.data.dedup.engine import Decision, decided
from echoray.data.dedup.fingerprints import Fingerprints, fingerprints
from echoray.data.dedup.index import Found, KeptTexts

_BLOCK = 4096
_AHEAD = 2  # blocks per actor whose fingerprints are made ahead


class _Shard:
    """The kept texts of every so many blocks."""

    def __init__(self, config: DedupConfig) -> None:
        self._kept = KeptTexts(config)

    def fingerprints(self, texts: list[str]) -> Fingerprints:
        """The fingerprints of texts: made here, so that no process needs a core beside the actors'."""
        return fingerprints(texts)

    def closest(self, block: Fingerprints) -> list[Found]:
        """What ``KeptTexts.closest`` says of each text of the block."""
        return [self._kept.closest(block, row) for row in range(len(block))]

    def add(self, block: Fingerprints, rows: list[int], first: int) -> None:
        """Keep some rows of the block whose first text has the order ``first``."""
        for row in rows:
            self._kept.add(block, row, first + row)


def deduplicated(
    texts: Iterable[str], config: DedupConfig, *, num_workers: int, block: int = _BLOCK
) -> Iterator[Decision]:
    """Decide each of ``texts`` in order as ``Deduplicator`` does; Ray must be initialised.

    A block is compared with all that was kept before it by the actors at once, each with its part, and then
    within itself by the caller. Of the first text that is too close there is one, so it does not matter who
    finds it, nor how many actors there are.
    """
    import ray

    actor: Any = ray.remote(num_cpus=1)(_Shard)
    shards = [actor.remote(config) for _ in range(num_workers)]
    waiting = _made_ahead(iter(texts), shards, block)
    first = 0
    for number, made in enumerate(waiting):
        earlier = ray.get([shard.closest.remote(made) for shard in shards])
        prints: Fingerprints = ray.get(made)
        nearest = [min(found, key=_order) for found in zip(*earlier, strict=True)]
        decisions = list(decided(KeptTexts(config), prints, first, nearest))
        rows = [row for row, one in enumerate(decisions) if one.kept]
        shards[number % num_workers].add.remote(made, rows, first)
        yield from decisions
        first += len(decisions)


def _made_ahead(texts: Iterator[str], shards: list[Any], block: int) -> Iterator[Any]:
    """References to the fingerprints of blocks, of which some are under way while one is used."""
    waiting: deque[Any] = deque()
    turns = cycle(shards)
    while True:
        while len(waiting) <= _AHEAD * len(shards) and (some := list(islice(texts, block))):
            waiting.append(next(turns).fingerprints.remote(some))
        if not waiting:
            return
        yield waiting.popleft()


def _order(found: Found) -> int:
    return found[0]
