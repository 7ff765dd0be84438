"""Kept texts by classes of length, and the search for the first that is close."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from echoray.config.dedup import DedupConfig
from echoray.data.dedup.fingerprints import Fingerprints
from echoray.data.dedup.kernels import first_near, first_similar, list_near, masks_of

Reason = Literal["rouge_l", "simhash"]
NOBODY = int(np.iinfo(np.int64).max)
Found = tuple[int, Reason | None]  # the order of the first kept text that is too close, and by which rule
NOBODY_FOUND: Found = (NOBODY, None)
_CLASS_RATIO = 1.25  # between the longest and the shortest text of a class of length


class _Columns:
    """Arrays that grow together along one axis; each attribute has room for more than ``size``."""

    def __init__(self, **shapes: tuple[type[np.generic], tuple[int, ...]]) -> None:
        self.size, self._room = 0, 16
        self._axes = {name: shape.index(0) for name, (_, shape) in shapes.items()}
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.zeros([side or self._room for side in shape], dtype)
            for name, (dtype, shape) in shapes.items()
        }

    def reserve(self, count: int) -> int:
        """Make room for ``count`` more; where they begin."""
        start, self.size = self.size, self.size + count
        while self.size > self._room:
            self._room *= 2
            for name, array in self.arrays.items():
                self.arrays[name] = np.concatenate([array, np.zeros_like(array)], axis=self._axes[name])
        return start


class _Query:
    """A text that others are compared with: where each of its tokens stands, by the token's id."""

    def __init__(self, ids: NDArray[np.int32], slot_of_id: NDArray[np.int32]) -> None:
        self.length = len(ids)
        known, slots = np.unique(ids, return_inverse=True)
        self._known, self._slot_of_id = known[known >= 0], slot_of_id
        slot_of_id[self._known] = np.flatnonzero(known >= 0)
        words = -(-len(ids) // 64)
        self.masks = np.zeros((len(known), words), np.uint64)
        masks_of(slots.astype(np.int32), self.masks)
        self.state = np.zeros(words, np.uint64)

    def close(self) -> None:
        """Give the table of slots back as it was."""
        self._slot_of_id[self._known] = -1


class KeptTexts:
    """Every kept text by its order; what was dropped leaves nothing behind."""

    def __init__(self, config: DedupConfig) -> None:
        threshold = config.rouge_l_fraction
        self._p, self._q = threshold.numerator, threshold.denominator
        self._distance = config.simhash_distance
        self._ids: dict[int, int] = {}  # by token hash
        self._slot_of_id = np.full(1024, -1, np.int32)
        self._pool = _Columns(ids=(np.int32, (0,)))
        self._classes: dict[int, _Columns] = {}
        self._near = _Columns(
            simhash=(np.uint64, (0,)), orders=(np.int64, (0,)), after=(np.int32, (self._distance + 1, 0))
        )
        self._heads = np.full((self._distance + 1, 1 << 16), -1, np.int32)
        self._slots = np.zeros(64, np.int32)
        self._counts = np.zeros(3, np.int64)
        self._hashes: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return self._near.size

    @property
    def compared(self) -> dict[str, int]:
        """Pairs whose coarse signatures, whose fine ones, and whose subsequences were compared."""
        return dict(zip(("coarse", "fine", "subsequence"), self._counts.tolist(), strict=True))

    def rows(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Order and token hashes of each kept text, in order."""
        yield from zip(self._near.arrays["orders"][: len(self)].tolist(), self._hashes, strict=True)

    def closest(self, block: Fingerprints, row: int) -> Found:
        """The first kept text that is too close, or NOBODY_FOUND."""
        near = self._first_near(block, row)
        similar = self._first_similar(block, row, NOBODY if near == NOBODY else near + 1)
        if similar <= near and similar != NOBODY:
            return similar, "rouge_l"
        return near, "simhash" if near != NOBODY else None

    def add(self, block: Fingerprints, row: int, order: int) -> None:
        """Keep a text; orders grow from one call to the next."""
        tokens = block.tokens(row)
        ids = self._ids_of(tokens, grow=True)
        start = self._pool.reserve(len(ids))
        self._pool.arrays["ids"][start : start + len(ids)] = ids
        if len(self._slot_of_id) < len(self._ids):
            self._slot_of_id = np.full(2 * len(self._ids), -1, np.int32)
        if len(self._slots) < len(ids):
            self._slots = np.zeros(2 * len(ids), np.int32)
        self._add_to_class(block, row, order, start)
        place = self._near.reserve(1)
        columns = self._near.arrays
        columns["simhash"][place], columns["orders"][place] = block.simhash_B[row], order
        if self._distance >= 0:
            list_near(self._heads, columns["after"], block.simhash_B[row], self._distance, place)
        self._hashes.append(tokens.copy())

    def _add_to_class(self, block: Fingerprints, row: int, order: int, start: int) -> None:
        length = len(block.tokens(row))
        key = _class_of(length)
        if key not in self._classes:
            self._classes[key] = _Columns(
                coarse=(np.uint64, (4, 0)),
                fine=(np.uint64, (0, 8)),
                lengths=(np.int32, (0,)),
                starts=(np.int64, (0,)),
                orders=(np.int64, (0,)),
            )
        place = self._classes[key].reserve(1)
        columns = self._classes[key].arrays
        columns["coarse"][:, place], columns["fine"][place] = block.coarse_B4[row], block.fine_B8[row]
        columns["lengths"][place], columns["starts"][place] = length, start
        columns["orders"][place] = order

    def _first_near(self, block: Fingerprints, row: int) -> int:
        if self._distance < 0 or not len(self):
            return NOBODY
        columns = self._near.arrays
        simhash = block.simhash_B[row]
        return int(
            first_near(
                columns["simhash"],
                columns["orders"],
                self._heads,
                columns["after"],
                simhash,
                self._distance,
                NOBODY,
            )
        )

    def _first_similar(self, block: Fingerprints, row: int, limit: int) -> int:
        """The first before ``limit`` with an F1 over the threshold, or NOBODY."""
        tokens = block.tokens(row)
        classes = list(self._classes_for(len(tokens)))
        if not classes:
            return NOBODY
        query = _Query(self._ids_of(tokens, grow=False), self._slot_of_id)
        found = limit
        for one in classes:
            found = first_similar(
                *one.arrays.values(),
                self._pool.arrays["ids"],
                one.size,
                self._slot_of_id,
                query.masks,
                query.state,
                self._slots,
                block.coarse_B4[row],
                block.fine_B8[row],
                query.length,
                self._p,
                self._q,
                found,
                self._counts,
            )
        query.close()
        return int(found) if found < limit else NOBODY

    def _classes_for(self, length: int) -> Iterator[_Columns]:
        """Classes whose lengths n let 2 min(m, n) / (m + n), which no F1 exceeds, exceed the threshold."""
        if length and self._p < self._q:
            shortest = self._p * length // (2 * self._q - self._p)
            longest = -(-(2 * self._q - self._p) * length // self._p)
            for key in range(_class_of(max(1, shortest)), _class_of(longest) + 1):
                if key in self._classes:
                    yield self._classes[key]

    def _ids_of(self, tokens: NDArray[np.uint64], *, grow: bool) -> NDArray[np.int32]:
        """Small numbers for tokens; -1 for those of no kept text, unless they are to be added."""
        hashes = tokens.tolist()
        if grow:
            return np.array([self._ids.setdefault(one, len(self._ids)) for one in hashes], np.int32)
        return np.array([self._ids.get(one, -1) for one in hashes], np.int32)


def _class_of(length: int) -> int:
    return int(math.log(length) / math.log(_CLASS_RATIO)) if length else -1
