"""What experts' decisions say about sources: rejection rates with intervals, suspension, re-generation.

She et al., EchoVLM, appendix A: where a sample set shows errors, its generation strategy or source model is
analysed and adjusted, "including model replacement and prompt optimization". A set, the open items of one
model and template, is suspended when the lower bound of its rate's Wilson interval exceeds the threshold:
then it is unlikely that its true rate is below. With the rate itself, or the upper bound, a few rejections
in a small sample would condemn a set that is good; at 95% a set right at the threshold is suspended one time
in forty. All functions are pure and deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from echoray.config.screen import ScreenConfig
from echoray.data.instruct.decisions import Outcome
from echoray.data.instruct.items import Item, Part
from echoray.data.instruct.review import SetKey, set_of
from echoray.types import Ledger

REVIEW_STEP, SUSPEND_STEP = "review", "suspend"


@dataclass(frozen=True)
class Rate:
    """Rejections among the reviewed items of a source; ``model`` or ``template`` None: of all of them."""

    model: str | None
    template: str | None
    reviewed: int
    rejected: int
    edited: int
    low: float  # Wilson interval of rejected / reviewed
    high: float

    @property
    def share(self) -> float:
        """Rejected of reviewed."""
        return self.rejected / self.reviewed


@dataclass(frozen=True)
class Suspension:
    """A set that is not trained on, and why."""

    model: str
    template: str
    reviewed: int
    rejected: int
    interval: tuple[float, float]

    @property
    def key(self) -> SetKey:
        """The set."""
        return SetKey(self.model, self.template)


@dataclass(frozen=True, order=True)
class Regeneration:
    """An item to be made again from the same study and template, by a member that is not ``excluded``.

    ``attempt`` is the new seed's number: 1 for the first time that a set is made again.
    """

    study_hash: str
    part: Part
    template: str
    excluded: tuple[str, ...]  # pool members by their name in the configuration
    attempt: int


@dataclass(frozen=True)
class Feedback:
    """All rates of a review and what follows from them."""

    sets: tuple[Rate, ...]
    models: tuple[Rate, ...]
    templates: tuple[Rate, ...]
    overall: Rate | None
    suspensions: tuple[Suspension, ...]


def wilson(rejected: int, reviewed: int, confidence: float) -> tuple[float, float]:
    """The Wilson score interval of a share (E. B. Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(rejected, reviewed).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def feedback(config: ScreenConfig, sampled: Iterable[Item], outcomes: Mapping[str, Outcome]) -> Feedback:
    """Rates per set, per model, per template and over all, of the items that have an outcome."""
    seen = [(set_of(one), outcomes[one.item_id].choice) for one in sampled if one.item_id in outcomes]

    def rates(of: Iterable[tuple[str | None, str | None]]) -> tuple[Rate, ...]:
        counts: dict[tuple[str | None, str | None], Counter[str]] = {}
        for key, (_, choice) in zip(of, seen, strict=True):
            counts.setdefault(key, Counter())[choice] += 1
        order = sorted(counts, key=lambda key: (key[0] or "", key[1] or ""))
        return tuple(_rate(*key, counts[key], config.confidence) for key in order)

    sets = rates((key.model, key.template) for key, _ in seen)
    overall = rates((None, None) for _ in seen)
    return Feedback(
        sets,
        rates((key.model, None) for key, _ in seen),
        rates((None, key.template) for key, _ in seen),
        overall[0] if overall else None,
        tuple(suspended(config, sets)),
    )


def exceeds(config: ScreenConfig, rate: Rate) -> bool:
    """Whether enough was reviewed and the interval lies above the threshold as a whole."""
    return rate.reviewed >= config.min_reviewed and rate.low > config.threshold


def suspended(config: ScreenConfig, sets: Sequence[Rate]) -> Iterator[Suspension]:
    """The sets whose rate exceeds the threshold; rates over several sets suspend nothing by themselves."""
    for one in sets:
        if one.model is not None and one.template is not None and exceeds(config, one):
            yield Suspension(one.model, one.template, one.reviewed, one.rejected, (one.low, one.high))


def _rate(model: str | None, template: str | None, counts: Counter[str], confidence: float) -> Rate:
    reviewed, rejected = counts.total(), counts["reject"]
    low, high = wilson(rejected, reviewed, confidence)
    return Rate(model, template, reviewed, rejected, counts["edit"], low, high)


class Applied:
    """Iterate the items that are kept: rejected ones are dropped, edits applied, suspended sets left out.

    ``ledgers`` (review, then suspension) is complete when the iteration has ended, and reconciles.
    Closed items pass: their answers are the report's own words, and no rate is measured on them.
    """

    def __init__(
        self, items: Iterable[Item], outcomes: Mapping[str, Outcome], suspensions: Iterable[Suspension]
    ) -> None:
        self._items, self._outcomes = items, outcomes
        self._suspended = {one.key for one in suspensions}
        self._in = self._out = 0
        self._rejected: Counter[str] = Counter()
        self._num_suspended = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self._in += 1
            outcome = self._outcomes.get(item.item_id)
            if outcome is not None and outcome.choice == "reject":
                self._rejected[str(outcome.reason)] += 1
            elif is_suspended(item, self._suspended):
                self._num_suspended += 1
            else:
                self._out += 1
                yield _edited(item, outcome)

    @property
    def ledgers(self) -> tuple[Ledger, Ledger]:
        """In = out + rejected by reason; then in = out + suspended."""
        reviewed = self._in - self._rejected.total()
        lost = {"suspended": self._num_suspended} if self._num_suspended else {}
        return (
            Ledger(REVIEW_STEP, self._in, reviewed, dict(sorted(self._rejected.items()))),
            Ledger(SUSPEND_STEP, reviewed, self._out, lost),
        )


def is_suspended(item: Item, sets: Iterable[SetKey]) -> bool:
    """Whether an item is an open one of a suspended set."""
    return item.form == "open" and set_of(item) in sets


def regenerations(
    items: Iterable[Item], suspensions: Sequence[Suspension], *, attempt: int
) -> list[Regeneration]:
    """What is to be made again: each study, part and template of a suspended set once, in order.

    Excluded are the members that made items of a suspended set of the template, whatever the study.
    """
    sets = {one.key for one in suspensions}
    wanted: set[tuple[str, Part, str]] = set()
    members: dict[str, set[str]] = {}
    for one in items:
        if is_suspended(one, sets):
            wanted.add((one.study_hash, one.part, one.provenance.template))
            members.setdefault(one.provenance.template, set()).add(one.provenance.generator)
    return [
        Regeneration(study_hash, part, template, tuple(sorted(members[template])), attempt)
        for study_hash, part, template in sorted(wanted)
    ]


def _edited(item: Item, outcome: Outcome | None) -> Item:
    if outcome is None or outcome.prompt is None or outcome.answer is None:
        return item
    return replace(item, prompt=outcome.prompt, answer=outcome.answer)
