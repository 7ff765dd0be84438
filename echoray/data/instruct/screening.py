"""The pre-screening step: an artifact of items in, one of passed and rejected items with all votes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from echoray import artifacts
from echoray.config.screen import ScreenConfig
from echoray.data.instruct.item_files import item_batches, seal_items
from echoray.data.instruct.items import Item, item_schema, rejected_schema
from echoray.data.instruct.prescreen import Case, Judge, Screened, screen
from echoray.data.instruct.rule_judges import rule_judges, rules_version
from echoray.data.instruct.study_texts import StudyTexts
from echoray.data.ledger import added
from echoray.data.parts import commit, forget_progress, made_parts, part_name, part_works, to_parquet
from echoray.storage import Store
from echoray.types import ArtifactRef, Ledger, Progress

if TYPE_CHECKING:
    import pyarrow as pa

STEP = "prescreen"
KIND = "screened"
# Settings that decide what passes.
_DECIDING = {"judges", "rules_veto", "max_characters"}

MakeJudges = Callable[[ScreenConfig], Sequence[Judge]]


def prescreen(
    config: ScreenConfig,
    store: Store,
    items: ArtifactRef,
    studies: ArtifactRef,
    progress: Progress,
    *,
    num_workers: int = 2,
    make_judges: MakeJudges = rule_judges,
    pool: Any = None,
) -> ArtifactRef:
    """Judge every item of an artifact (``part-*.parquet`` of ``item_schema``) on Ray, part by part.

    ``make_judges`` builds the pool in each worker; where it adds to the rule judges, ``pool`` is what decides
    their verdicts (names, models, prompts), for it becomes part of the artifact's name.
    The artifact (kind "screened") holds the passed items as ``part-*``, the others with their reason as
    ``rejected-*``, every vote as ``votes-*``, and the ledger.
    """
    plan = {"screen": config.model_dump(mode="json", include=_DECIDING), "rules": rules_version()}
    plan |= {"pool": pool} if pool is not None else {}
    parents = [items, studies]
    ref = artifacts.plan(KIND, items.name, config=plan, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    works = part_works(store, items)
    arguments = (store, ref, studies, config, make_judges)
    digests: dict[str, str | None] = {}
    ledgers: list[Ledger] = []
    for part in made_parts(store, ref, works, ScreenPart, arguments, num_workers=num_workers):
        digests |= part.files
        ledgers.append(Ledger(**part.summary))
        progress("judged items", sum(one.records_in for one in ledgers), None)
    seal_items(store, ref, [added(STEP, ledgers)], plan=plan, parents=parents, digests=digests)
    forget_progress(store, ref)
    return ref


class ScreenPart:
    """Judges one part of the items; called with {"work": {number, path}}."""

    def __init__(
        self,
        store: Store,
        ref: ArtifactRef,
        studies: ArtifactRef,
        config: ScreenConfig,
        make_judges: MakeJudges,
    ) -> None:
        self._store, self._ref = store, ref
        self._texts = StudyTexts(store, studies)
        self._judges = make_judges(config)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write the part's files; the row that ``commit`` returns."""
        work = row["work"]
        batches = item_batches(self._store, work["path"])
        found = [one for batch in batches for one in screen(self._cases(batch), self._judges)]
        files, ledger = part_files(work["number"], found)
        return commit(self._store, self._ref, work["number"], files, asdict(ledger))

    def _cases(self, batch: Sequence[Item]) -> list[Case]:
        reports = self._texts.reports(one.study_hash for one in batch)
        return [Case(one, reports[one.study_hash]) for one in batch]


def part_files(number: int, found: Sequence[Screened]) -> tuple[dict[str, bytes], Ledger]:
    """The three files of a part by name, and its ledger."""
    passed = [one.item.to_row() for one in found if one.accepted]
    rejected = [one.item.to_row() | {"reason": one.reason} for one in found if not one.accepted]
    votes = [{"item_id": one.item.item_id, **asdict(vote)} for one in found for vote in one.verdicts]
    reasons = Counter(str(one.reason) for one in found if not one.accepted)
    files = {
        part_name(number): to_parquet(passed, item_schema()),
        f"rejected-{number:05d}.parquet": to_parquet(rejected, rejected_schema()),
        f"votes-{number:05d}.parquet": to_parquet(votes, _vote_schema()),
    }
    return files, Ledger(STEP, len(found), len(passed), dict(sorted(reasons.items())))


def _vote_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("reason", "detail")]
    return pa.schema([("item_id", pa.string()), ("judge", pa.string()), ("accepted", pa.bool_()), *texts])
