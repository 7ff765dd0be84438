"""What is trained on: the items that passed, as experts' decisions leave them (artifact "conversations")."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from echoray import artifacts
from echoray.config import RunConfig, digest
from echoray.data.instruct.feedback import Applied, Rate
from echoray.data.instruct.item_files import items_of_part, seal_items
from echoray.data.instruct.items import Item, item_schema
from echoray.data.instruct.quality import TOTAL, quality_chain
from echoray.data.instruct.rounds import Reviewed
from echoray.data.ledger import added
from echoray.data.parts import number_of, part_name, part_paths, to_parquet
from echoray.errors import InputDataError
from echoray.storage import Store
from echoray.types import ArtifactRef, Ledger, Progress

KIND = "conversations"
REVIEW_FILE = "review.json"


def keep(
    run: RunConfig, store: Store, studies: ArtifactRef, rounds: Sequence[Reviewed], progress: Progress
) -> ArtifactRef:
    """Apply the decisions about all ``rounds`` and write the conversations that are left.

    A set whose rejections exceed the threshold is left out and made again by other members. New decisions
    give a new artifact. Files: ``part-*`` as the studies' parts, ``review.json`` (rates with intervals,
    suspensions), ledger from the first raw item to the last kept one.
    """
    _refuse_unreviewed(run, store, rounds)
    plan = {"rounds": [_decided(one) for one in rounds]}
    parents = [studies, *(one.generated.screened for one in rounds)]
    ref = artifacts.plan(KIND, run.name, config=plan, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    digests: dict[str, str | None] = {}
    ledgers: list[list[tuple[Ledger, Ledger]]] = [[] for _ in rounds]
    paths = part_paths(store, studies)
    for done, path in enumerate(paths, 1):
        name = part_name(number_of(path))
        rows: list[dict[str, Any]] = []
        for one, seen in zip(rounds, ledgers, strict=True):
            found = Applied(_items(store, one, name), one.outcomes, one.feedback.suspensions)
            rows += [item.to_row() for item in found]
            seen.append(found.ledgers)
        digests[name] = artifacts.write_file(store, ref.path, name, to_parquet(rows, item_schema()))
        progress("applied decisions", done, len(paths))
    chain = full_chain(store, rounds, ledgers)
    content = json.dumps([_review_of(one) for one in rounds], indent=1).encode()
    digests[REVIEW_FILE] = artifacts.write_file(store, ref.path, REVIEW_FILE, content)
    seal_items(store, ref, chain, plan=plan, parents=parents, digests=digests)
    return ref


def full_chain(
    store: Store, rounds: Sequence[Reviewed], ledgers: Sequence[Sequence[tuple[Ledger, Ledger]]]
) -> list[Ledger]:
    """Every step's ledger, round by round, and last the total: raw items in, kept ones out.

    ``ledgers`` are those of review and suspension, by round and part.
    """
    chain: list[Ledger] = []
    totals: list[Ledger] = []
    for number, (one, parts) in enumerate(zip(rounds, ledgers, strict=True), 1):
        applied = [added(step[0].step, step) for step in zip(*parts, strict=True)]
        *rows, total = quality_chain([*one.generated.ledgers(store), *applied])
        chain += rows if number == 1 else [replace(row, step=f"{row.step} {number}") for row in rows]
        totals.append(total)
    return [*chain, added(TOTAL, totals)]


def _items(store: Store, one: Reviewed, name: str) -> Iterator[Item]:
    return items_of_part(store, f"{one.generated.screened.path}/{name}")


def _refuse_unreviewed(run: RunConfig, store: Store, rounds: Sequence[Reviewed]) -> None:
    if not run.instruct.require_review:
        return
    for one in rounds:
        if one.num_open and one.generated.sample is not None:
            raise InputDataError(
                f"{store.uri(one.generated.sample.path)}: {one.num_open} of {len(one.sampled)} sampled items "
                "have no decision, and instruct.require_review is on",
                hint="review them with `echoray data review serve`, or import decisions",
            )


def _decided(one: Reviewed) -> dict[str, Any]:
    """What the decisions of a round say, as it is part of the artifact's name."""
    said = [asdict(one.outcomes[item_id]) for item_id in sorted(one.outcomes)]
    suspended = [[found.model, found.template] for found in one.feedback.suspensions]
    return {"outcomes": digest(said), "suspended": suspended}


def _review_of(one: Reviewed) -> dict[str, Any]:
    found = one.feedback
    choices = Counter(outcome.choice for outcome in one.outcomes.values())
    return {
        "round": one.generated.turn.attempt,
        "sample": one.generated.sample.path if one.generated.sample else None,
        "sampled": len(one.sampled),
        "decided": dict(sorted(choices.items())),
        "rates": [_rate(rate) for rate in (*found.sets, *found.models, *found.templates)],
        "suspended": [asdict(suspension) for suspension in found.suspensions],
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {**asdict(rate), "share": rate.share}
