"""What the test shards hold: a light index of all examples, and the few whose images are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.batch import read_shard
from echoray.errors import EvaluationError
from echoray.storage import Store, store_of
from echoray.types import SYSTEMS, ArtifactRef, Language, Task

_TEXT_COLUMNS = ("example_id", "study_hash", "system", "task", "language", "prompt", "answer")


@dataclass(frozen=True)
class Entry:
    """One test example without its images; ``path`` and ``row`` say where they are."""

    example_id: str
    study_hash: str
    system: str
    task: Task
    language: Language
    prompt: str
    answer: str
    num_tokens: int
    path: str
    row: int


@dataclass(frozen=True)
class Case:
    """An example as a clinician sees it: the frames (PNG), the question and the reference answer."""

    example_id: str
    system: str
    language: Language
    prompt: str
    reference: str
    images: tuple[bytes, ...]

    @property
    def image_png(self) -> bytes:
        """The first frame."""
        return self.images[0]


def list_entries(
    store: Store, shards: ArtifactRef, tasks: Sequence[str], max_examples: int | None = None
) -> list[Entry]:
    """The test examples of ``tasks`` in the shards' order, at most ``max_examples`` of them.

    The shards are ordered by study hash, so the first ones are a random sample of the studies.
    Raises EvaluationError where there are none, or where an example id occurs more than once.
    """
    artifacts.require(store, shards, made_by="echoray data tokenize")
    entries = list(_entries(store, shards, tasks))
    _refuse_duplicates(store.uri(shards.path), entries)
    if not entries:
        raise EvaluationError(
            f"{store.uri(shards.path)}: the test split has no example of {', '.join(tasks)}",
            hint="use more studies, a larger data.split.test, or other evaluate.tasks",
        )
    return entries[:max_examples]


def _refuse_duplicates(where: str, entries: Sequence[Entry]) -> None:
    """Predictions are kept by example id, so each must stand for one example."""
    repeated = [count for count in Counter(entry.example_id for entry in entries).values() if count > 1]
    if repeated:
        raise EvaluationError(
            f"{where}: {len(repeated)} example ids occur more than once in the test split, on "
            f"{sum(repeated)} of its {len(entries)} examples",
            hint="a study in two sources is read twice: remove one, then run `echoray data prepare` again",
        )


def _entries(store: Store, shards: ArtifactRef, tasks: Sequence[str]) -> Iterator[Entry]:
    for path in store.list(f"{shards.path}/test"):
        columns = read_shard(store, path, [*_TEXT_COLUMNS, "num_tokens"]).to_pylist()
        for row, values in enumerate(columns):
            if values["task"] in tasks:
                yield Entry(**values, path=path, row=row)


def read_rows(
    store: Store, entries: Sequence[Entry], columns: Sequence[str]
) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Yield each entry with ``columns`` of its row; a shard that several entries share is read once."""
    for path in sorted({entry.path for entry in entries}):
        table = read_shard(store, path, columns)
        for entry in entries:
            if entry.path == path:
                yield entry, table.slice(entry.row, 1).to_pylist()[0]


def load_cases(store: Store, entries: Sequence[Entry]) -> list[Case]:
    """The entries with their frames, ordered as given."""
    cases = {
        entry.example_id: Case(
            entry.example_id, entry.system, entry.language, entry.prompt, entry.answer, tuple(row["images"])
        )
        for entry, row in read_rows(store, entries, ["images"])
    }
    return [cases[entry.example_id] for entry in entries]


def pick_entries(entries: Sequence[Entry], count: int) -> list[Entry]:
    """The first entry of each system in turn, then the second, and so on; never chosen by their scores."""
    by_system = {system: [entry for entry in entries if entry.system == system] for system in SYSTEMS}
    rounds = max(map(len, by_system.values()), default=0)
    picked = [own[turn] for turn in range(rounds) for own in by_system.values() if turn < len(own)]
    return picked[:count]


def sample_case(run: RunConfig, shards: ArtifactRef) -> Case:
    """The first test report with its frames, the same for the same shards."""
    store = store_of(run)
    return load_cases(store, list_entries(store, shards, ["report"], 1))[0]
