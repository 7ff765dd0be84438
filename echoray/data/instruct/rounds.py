"""The chain of a round (generate, deduplicate, pre-screen, sample, review), and rounds until no set is bad.

She et al., EchoVLM, appendix A: a sample set with errors leads to another model or prompt; here the sets that
experts reject too often are suspended and made again by the other members of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.instruct.assignment import Assignment
from echoray.data.instruct.decisions import DecisionLog, Outcome, outcomes
from echoray.data.instruct.distinct import distinct
from echoray.data.instruct.endpoint_judge import judges_for, pool_of
from echoray.data.instruct.feedback import Feedback, feedback
from echoray.data.instruct.generate import generate
from echoray.data.instruct.item_files import items_of
from echoray.data.instruct.items import Item
from echoray.data.instruct.requests import Round
from echoray.data.instruct.review import make_sample, read_sample, sample_name
from echoray.data.instruct.screening import prescreen
from echoray.data.ledger import read_ledger
from echoray.storage import Store
from echoray.types import ArtifactRef, Ledger, Progress


@dataclass(frozen=True)
class Generated:
    """The artifacts of one round; ``sample`` is None where no open item is left to review."""

    turn: Round
    candidates: ArtifactRef
    distinct: ArtifactRef
    screened: ArtifactRef
    sample: ArtifactRef | None

    def ledgers(self, store: Store) -> tuple[Ledger, ...]:
        """Generation, deduplication and pre-screening."""
        refs = (self.candidates, self.distinct, self.screened)
        return tuple(row for one in refs for row in read_ledger(store, one.path))


@dataclass(frozen=True)
class Reviewed:
    """A round with what experts have said of its sample so far."""

    generated: Generated
    sampled: tuple[Item, ...]
    outcomes: Mapping[str, Outcome]
    feedback: Feedback

    @property
    def num_open(self) -> int:
        """How many items of the sample nobody has decided yet."""
        return sum(one.item_id not in self.outcomes for one in self.sampled)


class Rounds:
    """The rounds of one run; each is made when it is asked for, and found where it was made before."""

    def __init__(self, run: RunConfig, store: Store, studies: ArtifactRef, progress: Progress) -> None:
        self._run, self._store, self._studies, self._progress = run, store, studies, progress
        self._judges = judges_for(run.instruct, store, run.seed, run.data.num_workers)

    def __iter__(self) -> Iterator[Reviewed]:
        """The first round, and one more after each that led to suspensions, ``max_rounds`` at most."""
        return self._rounds(make=True)

    def begun(self) -> Iterator[Reviewed]:
        """The rounds whose items were generated before."""
        return self._rounds(make=False)

    def _rounds(self, *, make: bool) -> Iterator[Reviewed]:
        done: list[Generated] = []
        turn = Round()
        for _ in range(self._run.instruct.max_rounds):
            if not make and artifacts.find(self._store, self.assignment(turn, done).ref) is None:
                return
            made = self.generated(turn, done)
            reviewed = self.reviewed(made)
            yield reviewed
            done.append(made)
            bad = [(one.model, one.template) for one in reviewed.feedback.suspensions]
            if not bad:
                return
            turn = replace(turn, attempt=turn.attempt + 1, suspended=tuple(sorted({*turn.suspended, *bad})))

    def generated(self, turn: Round, done: list[Generated]) -> Generated:
        """Make a round as far as the sample, after the rounds ``done``."""
        run, store = self._run, self._store
        workers = run.data.num_workers
        assignment = self.assignment(turn, done)
        made = generate(assignment, self._progress, num_workers=workers)
        kept = distinct(
            run.data.dedup,
            store,
            made,
            self._progress,
            earlier=[one.distinct for one in done],
            exempt=run.instruct.dedup_exempt,
            num_workers=workers,
        )
        screened = prescreen(
            run.instruct.screen,
            store,
            kept,
            self._studies,
            self._progress,
            num_workers=workers,
            make_judges=self._judges,
            pool=pool_of(run.instruct),
        )
        return Generated(turn, made, kept, screened, self._sample(screened))

    def assignment(self, turn: Round, done: list[Generated]) -> Assignment:
        """What the generator works on in a round."""
        before = done[-1].screened if done else None
        return Assignment(self._run.instruct, self._store, self._studies, self._run.seed, turn, before)

    def reviewed(self, made: Generated) -> Reviewed:
        """The round with the decisions that are there now."""
        if made.sample is None:
            return Reviewed(made, (), {}, feedback(self._run.instruct.screen, (), {}))
        items = tuple(one.item for one in read_sample(self._store, made.sample))
        found = outcomes(DecisionLog(self._store, sample_name(made.sample)).current())
        return Reviewed(made, items, found, feedback(self._run.instruct.screen, items, found))

    def _sample(self, screened: ArtifactRef) -> ArtifactRef | None:
        if not any(one.form == "open" for one in items_of(self._store, screened)):
            return None
        config, seed = self._run.instruct.screen, self._run.seed
        return make_sample(config, self._store, screened, self._studies, seed=seed)
