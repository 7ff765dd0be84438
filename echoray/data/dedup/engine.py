"""Texts in order, each compared with all that were kept before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echoray.config.dedup import DedupConfig
from echoray.data.dedup.fingerprints import Fingerprints, fingerprints, of_tokens
from echoray.data.dedup.index import NOBODY_FOUND, Found, KeptTexts, Reason

if TYPE_CHECKING:
    import pyarrow as pa

    from echoray.storage import Store

_BLOCK = 4096  # texts whose fingerprints are held at once


@dataclass(frozen=True)
class Decision:
    """What became of one text.

    ``partner`` is the order of the first kept text that it is too close to (None where it is kept), by
    ``reason``: "rouge_l" where ROUGE-L says so of that text, else "simhash".
    """

    partner: int | None = None
    reason: Reason | None = None

    @property
    def kept(self) -> bool:
        """Whether nothing kept before is too close."""
        return self.partner is None


KEPT = Decision()


def decided(
    kept: KeptTexts, block: Fingerprints, first: int, earlier: Sequence[Found] | None = None
) -> Iterator[Decision]:
    """Decide the texts of a block in order, the first of which has the order ``first``; ``kept`` grows.

    ``earlier``, where given, says of each text what it is too close to among texts that are not in ``kept``
    and came before all that are.
    """
    for row in range(len(block)):
        found = earlier[row] if earlier else NOBODY_FOUND
        if found == NOBODY_FOUND:
            found = kept.closest(block, row)
        if found == NOBODY_FOUND:
            kept.add(block, row, first + row)
        yield KEPT if found == NOBODY_FOUND else Decision(*found)


class Deduplicator:
    """Decides text after text; ``num_seen`` is the order of the next one. Memory grows with what is kept."""

    def __init__(self, config: DedupConfig | None = None) -> None:
        self._kept = KeptTexts(config or DedupConfig())
        self.num_seen = 0

    @property
    def num_kept(self) -> int:
        """How many texts were kept."""
        return len(self._kept)

    @property
    def compared(self) -> dict[str, int]:
        """Pairs whose coarse signatures, whose fine signatures, and whose subsequences were compared."""
        return self._kept.compared

    def add(self, texts: Sequence[str]) -> Iterator[Decision]:
        """Decide each of ``texts`` in order."""
        for start in range(0, len(texts), _BLOCK):
            block = fingerprints(texts[start : start + _BLOCK])
            for decision in decided(self._kept, block, self.num_seen):
                self.num_seen += 1
                yield decision

    def save(self, store: Store, path: str) -> None:
        """Write what ``load`` goes on from: the order and the token hashes of each kept text, as Parquet."""
        from echoray.data.parts import to_parquet

        rows = [{"order": order, "tokens": tokens} for order, tokens in self._kept.rows()]
        rows.append({"order": self.num_seen, "tokens": None})
        store.write_bytes(path, to_parquet(rows, _index_schema()))

    @staticmethod
    def load(store: Store, path: str, config: DedupConfig | None = None) -> Deduplicator:
        """The deduplicator that was saved; further texts are decided as if all had come in one run."""
        from echoray.data.parts import read_rows

        found = Deduplicator(config)
        *rows, last = read_rows(store, path)
        tokens: list[NDArray[np.uint64]] = [np.array(row["tokens"], np.uint64) for row in rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(one) for one in tokens], out=offsets[1:])
        block = of_tokens(np.concatenate([*tokens, np.zeros(0, np.uint64)]), offsets)
        for row in range(len(rows)):
            found._kept.add(block, row, rows[row]["order"])
        found.num_seen = last["order"]
        return found


def _index_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("order", pa.int64()), ("tokens", pa.list_(pa.uint64()))])
