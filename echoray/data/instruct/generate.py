"""The generation step: clean studies in, items with their provenance out (artifact "candidates")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from echoray import artifacts
from echoray.config.instruct import RulesMember, VllmMember
from echoray.data.instruct.answers import Answer, AnswerCache, Proposed, read_proposed, refusal
from echoray.data.instruct.ask import answers_of_endpoints
from echoray.data.instruct.assignment import Assignment
from echoray.data.instruct.item_files import seal_items
from echoray.data.instruct.items import Item, Part, Provenance, item_schema
from echoray.data.instruct.requests import Request
from echoray.data.instruct.rules import item_of, report_items, rule_items
from echoray.data.ledger import added
from echoray.data.parts import commit, forget_progress, made_parts, part_name, to_parquet
from echoray.errors import ArtifactError
from echoray.storage import Store
from echoray.types import ArtifactRef, Ledger, Progress

STEP = "generate"


def generate(assignment: Assignment, progress: Progress, *, num_workers: int = 2) -> ArtifactRef:
    """Have the pool make items of every study with a report, part by part as the studies lie.

    First all models answer, into a cache in the store; then the workers read, check and write. Both go on
    where they were interrupted.
    Files: ``part-*`` (items), ``rejected-*`` (what is no item, with a reason), ledger.
    """
    store, ref = assignment.store, assignment.ref
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.require(store, assignment.studies, made_by="echoray data prepare")
    answers_of_endpoints(assignment, progress)
    _answers_of_engines(assignment, progress)
    digests: dict[str, str | None] = {}
    ledgers: list[Ledger] = []
    spent: dict[str, Counter[str]] = {}
    works, arguments = assignment.works, (ref, assignment)
    for part in made_parts(store, ref, works, GeneratePart, arguments, num_workers=num_workers):
        digests |= part.files
        ledgers.append(Ledger(**part.summary["ledger"]))
        for name, counts in part.summary["spent"].items():
            spent.setdefault(name, Counter()).update(counts)
        progress("generated parts", len(ledgers), len(works))
    seal_items(
        store,
        ref,
        [added(STEP, ledgers)],
        plan=assignment.plan,
        parents=assignment.parents,
        digests=digests,
        spent={name: dict(spent[name]) for name in sorted(spent)},
    )
    forget_progress(store, ref)
    return ref


def _answers_of_engines(assignment: Assignment, progress: Progress) -> None:
    """Have vLLM answer what is for the members that run on this cluster."""
    members = [one for one in assignment.config.generators if isinstance(one, VllmMember)]
    if members:
        from echoray.data.instruct.vllm_batch import answer_by_vllm

        for member in members:
            answer_by_vllm(assignment, member, progress)


@dataclass
class _Made:
    """What a part is going to hold."""

    items: list[Item] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    spent: dict[str, Counter[str]] = field(default_factory=dict)

    def refuse(self, request: Request, reason: str, one: Proposed | None = None) -> None:
        """Put a proposal, or a request that brought none, into quarantine."""
        proposed = asdict(one) if one else {"part": "", "prompt": "", "answer": ""}
        origin = {"generator": request.member.name, "template": request.template.id}
        known = {"study_hash": request.study.study_hash, "form": request.form}
        self.refused.append({**known, **proposed, **origin, "reason": reason})

    @property
    def ledger(self) -> Ledger:
        """A proposal is one record, and so is a request that brought none."""
        reasons = Counter(one["reason"] for one in self.refused)
        total = len(self.items) + len(self.refused)
        return Ledger(STEP, total, len(self.items), dict(sorted(reasons.items())))


class GeneratePart:
    """Makes the items of one part of the studies; called with {"work": {number, path}}."""

    def __init__(self, ref: ArtifactRef, assignment: Assignment) -> None:
        self._ref, self._assignment = ref, assignment
        self._store: Store = assignment.store
        self._cache = AnswerCache(assignment.store)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write the part's files; the row that ``commit`` returns."""
        work, made = row["work"], _Made()
        rows = self._assignment.rows(work["path"], pictures=self._assignment.sees_pictures)
        for study, requests in rows:
            self._study(study, requests, made)
        number = work["number"]
        files = {
            part_name(number): to_parquet([one.to_row() for one in made.items], item_schema()),
            f"rejected-{number:05d}.parquet": to_parquet(made.refused, _refused_schema()),
        }
        spent = {name: dict(counts) for name, counts in made.spent.items()}
        summary = {"ledger": asdict(made.ledger), "spent": spent}
        return commit(self._store, self._ref, number, files, summary)

    def _study(self, row: Mapping[str, Any], requests: Sequence[Request], made: _Made) -> None:
        if requests and self._assignment.before is None:
            first, seed = requests[0], self._assignment.seed
            origin = Provenance("report", "report", first.template.id, "", seed)
            made.items += report_items(first.study, first.report, seed, origin)
        for request in requests:
            made.items += self._items(request, row, made)

    def _items(self, request: Request, row: Mapping[str, Any], made: _Made) -> list[Item]:
        """The items that the request brought; what else it brought goes into quarantine."""
        member, asked = request.member, self._assignment.asked(request, row)
        spent = made.spent.setdefault(member.name, Counter())
        spent["requests"] += 1
        if isinstance(member, RulesMember):
            limit = self._assignment.config.items_per_request
            return list(rule_items(request, limit, _origin(request, asked.prompt, request.seed)))
        answer = self._cache.read(request.study.study_hash, asked.key)
        if answer is None:
            raise ArtifactError(
                f"instruct member {member.name}: an answer is gone from the cache",
                hint="run again: it is asked for again",
            )
        spent.update(answers=answer.attempts, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)
        return list(_checked(request, answer, _origin(request, asked.prompt, answer.seed), made))


def _checked(request: Request, answer: Answer, origin: Provenance, made: _Made) -> Iterator[Item]:
    proposed = read_proposed(answer.text) if answer.failure is None else None
    if proposed is None:
        made.refuse(request, answer.failure or "malformed_answer")
        return
    for number, one in enumerate(proposed):
        reason = refusal(one, request.form, request.parts, request.report)
        if reason is not None:
            made.refuse(request, reason, one)
        else:
            part = cast(Part, one.part)
            yield item_of(request, part, one.prompt, one.answer, number, origin)


def _origin(request: Request, prompt: str, seed: int) -> Provenance:
    member = request.member
    return Provenance(member.name, member.model, request.template.id, prompt, seed)


def _refused_schema() -> Any:
    import pyarrow as pa

    names = ("study_hash", "form", "part", "prompt", "answer", "generator", "template", "reason")
    return pa.schema([(name, pa.string()) for name in names])
