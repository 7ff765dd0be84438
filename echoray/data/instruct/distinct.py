"""The deduplication step: items in, those out that are not too close to one before (artifact "distinct").

She et al., EchoVLM, appendix A: an instance is discarded if its ROUGE-L similarity with any previously
generated one exceeds 0.7, or its SimHash is within a Hamming distance of 3. The order is that of the studies'
parts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from echoray import artifacts
from echoray.config.dedup import DedupConfig
from echoray.data.dedup import deduplicated
from echoray.data.instruct.item_files import items_of, items_of_part, seal_items
from echoray.data.instruct.items import Item, item_schema, rejected_schema
from echoray.data.parts import number_of, part_name, part_paths, to_parquet
from echoray.storage import Store
from echoray.types import ArtifactRef, Ledger, Progress

STEP = "dedup"
KIND = "distinct"

Decided = tuple[
    int, Item, str | None, int | None
]  # part, item, reason it is dropped for, what it is close to


def distinct(
    config: DedupConfig,
    store: Store,
    items: ArtifactRef,
    progress: Progress,
    *,
    earlier: Sequence[ArtifactRef] = (),
    exempt: Sequence[str] = (),
    num_workers: int = 2,
) -> ArtifactRef:
    """Drop every item too close to one before it, or to one of the ``earlier`` artifacts' items.

    Items of the parts ``exempt`` are kept and not compared. Ray must be initialised. What is dropped goes to
    ``dropped-*`` with reason and the place of the first similar item among the compared ones.
    An interrupted step begins anew: it takes minutes where the steps around it take days.
    """
    plan = {"dedup": config.model_dump(mode="json"), "exempt": sorted(exempt)}
    parents = [items, *earlier]
    ref = artifacts.plan(KIND, items.name, config=plan, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.require(store, items, made_by="echoray data instruct generate")
    numbers = [number_of(path) for path in part_paths(store, items)]
    decisions = _decisions(_Texts(store, items, earlier, exempt), config, num_workers)
    writer = _Writer(store, ref, numbers)
    for done, decided in enumerate(decisions, 1):
        writer.add(decided)
        if done % 1000 == 0:
            progress("compared items", done, None)
    ledger = writer.finish()
    seal_items(store, ref, [ledger], plan=plan, parents=parents, digests=writer.digests)
    return ref


class _Texts:
    """The texts to compare, in order; what is read of ``items`` waits here for its decision."""

    def __init__(
        self, store: Store, items: ArtifactRef, earlier: Sequence[ArtifactRef], exempt: Sequence[str]
    ) -> None:
        self._store, self._items, self._earlier, self._exempt = store, items, earlier, exempt
        self.num_earlier = 0
        self.waiting: deque[tuple[int, Item]] = deque()

    def __iter__(self) -> Iterator[str]:
        # What an earlier round kept is kept again: it was compared with the same texts in the same order.
        for ref in self._earlier:
            for item in items_of(self._store, ref):
                if self.compares(item):
                    self.num_earlier += 1
                    yield item.text
        for path in part_paths(self._store, self._items):
            for item in items_of_part(self._store, path):
                self.waiting.append((number_of(path), item))
                if self.compares(item):
                    yield item.text

    def compares(self, item: Item) -> bool:
        """Whether the item is compared at all."""
        return item.part not in self._exempt

    def passed(self) -> Iterator[Decided]:
        """The exempt items before the next one that is compared."""
        while self.waiting and not self.compares(self.waiting[0][1]):
            yield (*self.waiting.popleft(), None, None)


def _decisions(texts: _Texts, config: DedupConfig, num_workers: int) -> Iterator[Decided]:
    """Each item with what becomes of it, in order; some blocks of them are in memory."""
    for place, decision in enumerate(deduplicated(texts, config, num_workers=num_workers)):
        if place >= texts.num_earlier:
            yield from texts.passed()
            yield (*texts.waiting.popleft(), decision.reason, decision.partner)
    yield from texts.passed()


class _Writer:
    """Writes each part when its items are through; the parts are numbered as those of the items."""

    def __init__(self, store: Store, ref: ArtifactRef, numbers: Sequence[int]) -> None:
        self._store, self._ref = store, ref
        self._numbers = deque(numbers)
        self._kept: list[dict[str, Any]] = []
        self._dropped: list[dict[str, Any]] = []
        self._reasons: Counter[str] = Counter()
        self._num_kept = 0
        self.digests: dict[str, str | None] = {}

    def add(self, decided: Decided) -> None:
        """Take the next item; items come part by part."""
        number, item, reason, partner = decided
        while self._numbers[0] != number:
            self._flush()
        if reason is None:
            self._kept.append(item.to_row())
            self._num_kept += 1
        else:
            self._dropped.append({**item.to_row(), "reason": reason, "first_similar": partner})
            self._reasons[reason] += 1

    def finish(self) -> Ledger:
        """Write what is left; the step's ledger."""
        while self._numbers:
            self._flush()
        reasons = dict(sorted(self._reasons.items()))
        return Ledger(STEP, self._num_kept + self._reasons.total(), self._num_kept, reasons)

    def _flush(self) -> None:
        number = self._numbers.popleft()
        contents = {
            part_name(number): to_parquet(self._kept, item_schema()),
            f"dropped-{number:05d}.parquet": to_parquet(self._dropped, _dropped_schema()),
        }
        for name, content in contents.items():
            self.digests[name] = artifacts.write_file(self._store, self._ref.path, name, content)
        self._kept, self._dropped = [], []


def _dropped_schema() -> Any:
    import pyarrow as pa

    return rejected_schema().append(pa.field("first_similar", pa.int64()))
