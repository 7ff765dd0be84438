"""The sample of pre-screened items that experts review, as an artifact (kind "review-sample").

She et al., EchoVLM, appendix A: 40,000 random samples of the open-ended subset are validated by experts. Here
the sample is stratified by set, the items of one model and template, with proportional allocation: a set's
share of the sample is its share of the items, so that a set of a rarely used model is seen as well. Within a
set each item is as likely as any other (without replacement), which is what the rates' intervals assume.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoray import artifacts
from echoray.config.screen import ScreenConfig
from echoray.data.instruct.item_files import items_of
from echoray.data.instruct.items import Item, item_schema
from echoray.data.instruct.study_texts import StudyTexts
from echoray.data.parts import read_rows, to_parquet
from echoray.errors import InputDataError
from echoray.storage import Store
from echoray.types import ArtifactRef, Report

KIND = "review-sample"
ITEMS_FILE = "items.parquet"
_REPORT = ("findings", "impression")


@dataclass(frozen=True, order=True)
class SetKey:
    """The items of one model and template: what is suspended and generated again as one."""

    model: str
    template: str


@dataclass(frozen=True)
class Sampled:
    """An item of the sample with its report."""

    item: Item
    report: Report


def set_of(item: Item) -> SetKey:
    """The set that an item belongs to."""
    return SetKey(item.provenance.model, item.provenance.template)


def allocate(counts: Mapping[SetKey, int], size: int) -> dict[SetKey, int]:
    """How many items of each set are drawn: proportionally, by largest remainders, never more than there are.

    Every set gets one where ``size`` allows it.
    """
    total = sum(counts.values())
    if size >= total:
        return dict(counts)
    sets = sorted(counts)
    least = 1 if size >= len(sets) else 0
    quota = {one: max(least, size * counts[one] // total) for one in sets}
    # The largest remainder first; equal ones by name. What the minimum took too much goes from the largest.
    in_proportion = [one for one in sets if size * counts[one] // total >= least]
    by_remainder = sorted(in_proportion, key=lambda one: (-(size * counts[one] % total), one))
    while sum(quota.values()) < size:
        for one in by_remainder:
            if sum(quota.values()) < size and quota[one] < counts[one]:
                quota[one] += 1
    while sum(quota.values()) > size:
        quota[max(sets, key=lambda one: (quota[one], one))] -= 1
    return quota


def draw(items: Iterable[Item], quota: Mapping[SetKey, int], seed: int) -> list[Item]:
    """Of each set the items with the smallest keyed hashes, in their order, whatever the input's.

    Only ``sum(quota.values())`` items are in memory.
    """
    heaps: dict[SetKey, list[tuple[int, str, Item]]] = {one: [] for one in quota}
    for item in items:
        heap, wanted = heaps.get(set_of(item), []), quota.get(set_of(item), 0)
        entry = (-_rank(item.item_id, seed), item.item_id, item)
        if len(heap) < wanted:
            heapq.heappush(heap, entry)
        elif wanted and entry > heap[0]:
            heapq.heapreplace(heap, entry)
    chosen = [entry for heap in heaps.values() for entry in heap]
    return [item for _, _, item in sorted(chosen, key=lambda entry: (-entry[0], entry[1]))]


def _rank(item_id: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {item_id}".encode()).digest()[:8], "big")


def make_sample(
    config: ScreenConfig, store: Store, items: ArtifactRef, studies: ArtifactRef, *, seed: int
) -> ArtifactRef:
    """Draw the sample of the open items of ``items`` with their reports; what is there is not drawn again.

    Pictures are not copied: the review shows those of ``studies`` while it is there.
    Raises InputDataError where there is no open item.
    """
    plan = {"size": config.sample_size, "seed": seed}
    parents = [items, studies]
    ref = artifacts.plan(KIND, items.name, config=plan, parents=parents)

    def build(folder: Path) -> Mapping[str, Any]:
        counts = Counter(set_of(one) for one in _open_items(store, items))
        if not counts:
            raise InputDataError(
                f"{store.uri(items.path)}: no open item passed the pre-screening",
                hint="generate items with open templates, or look at what was rejected",
            )
        quota = allocate(counts, config.sample_size)
        drawn = draw(_open_items(store, items), quota, seed)
        reports = StudyTexts(store, studies)
        rows = [one.to_row() | vars(reports.reports([one.study_hash])[one.study_hash]) for one in drawn]
        (folder / ITEMS_FILE).write_bytes(to_parquet(rows, _schema()))
        return {"items": len(drawn), "of": counts.total(), "sets": len(counts)}

    artifacts.produce(store, ref, build, config=plan, parents=parents)
    return ref


def read_sample(store: Store, sample: ArtifactRef) -> list[Sampled]:
    """The sample's items in the order in which they are reviewed."""
    artifacts.require(store, sample, made_by="echoray data instruct generate")
    rows = read_rows(store, f"{sample.path}/{ITEMS_FILE}")
    return [Sampled(Item.from_row(row), Report(row["findings"], row["impression"])) for row in rows]


def find_sample(store: Store, path: str | None) -> ArtifactRef:
    """The finished sample at ``path``, or the only one there is; InputDataError where that is not clear."""
    found = {one.ref.path: one.ref for one in artifacts.finished(store, KIND)}
    if path is not None and path.strip("/") in found:
        return found[path.strip("/")]
    if path is None and len(found) == 1:
        return next(iter(found.values()))
    listed = ", ".join(sorted(found)) or "none: run `echoray data instruct generate`"
    what = "no sample is named" if path is None else f"{path}: no finished sample"
    raise InputDataError(f"{what}, {len(found)} are there", hint=f"--sample with one of: {listed}")


def sample_name(sample: ArtifactRef) -> str:
    """The sample's name in paths of decisions."""
    return sample.path.rpartition("/")[2]


def parent_of(store: Store, ref: ArtifactRef, *kinds: str) -> ArtifactRef:
    """The parent of an artifact that is of one of ``kinds``; InputDataError where it has none."""
    manifest = artifacts.require(store, ref, made_by="echoray data instruct generate")
    for one in manifest.parents:
        if one.kind in kinds:
            return one
    raise InputDataError(
        f"{store.uri(ref.path)}: was not made from {' or '.join(kinds)}", hint="name another artifact"
    )


def _open_items(store: Store, items: ArtifactRef) -> Iterator[Item]:
    return (one for one in items_of(store, items) if one.form == "open")


def _schema() -> Any:
    import pyarrow as pa

    schema = item_schema()
    for name in _REPORT:
        schema = schema.append(pa.field(name, pa.string()))
    return schema
