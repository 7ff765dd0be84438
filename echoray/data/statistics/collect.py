"""Count what the studies and shards of a run hold, streaming, without reading a picture."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from echoray.data.batch import PATCH_PX, open_shard
from echoray.data.clean import clean_rows
from echoray.data.ledger import LEDGER_FILE
from echoray.data.statistics.distribution import Distribution
from echoray.storage import Store
from echoray.types import SPLITS, ArtifactRef, Report

SCHEMA_VERSION = 1
_ROWS_AT_A_TIME = 1024
_STUDY_COLUMNS = (
    "system", "split", "language", "source", "patient_key", "findings", "impression", "grid_thw",
)  # fmt: skip
_LENGTHS = ("num_tokens", "num_image_tokens", "num_answer_tokens")
_EXAMPLE_COLUMNS = ("system", "task", "language", "truncated", *_LENGTHS)

_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Cases:
    """Studies that agree in system, split, language and source."""

    system: str
    split: str
    language: str
    source: str
    num_studies: int
    num_images: int


@dataclass(frozen=True)
class Examples:
    """Tokenized examples that agree in system, split, task and language, and their tokens."""

    system: str
    split: str
    task: str
    language: str
    num_examples: int
    num_truncated: int
    num_tokens: int
    num_image_tokens: int
    num_answer_tokens: int


@dataclass(frozen=True)
class Pictures:
    """How many pictures have this size."""

    width_px: int
    height_px: int
    num_images: int


@dataclass(frozen=True)
class Statistics:
    """Counts of a run's data; ``lengths`` are characters of reports by language, images per study, tokens."""

    studies: str  # the artifacts' paths
    shards: str
    num_patients: int
    cases: tuple[Cases, ...]
    examples: tuple[Examples, ...]
    pictures: tuple[Pictures, ...]
    lengths: Mapping[str, Distribution]
    ledger: tuple[Mapping[str, Any], ...]

    def to_json(self) -> str:
        """The content of stats.json; distributions are summarised."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        content["lengths"] = {name: one.summary() for name, one in self.lengths.items()}
        return json.dumps(content, indent=1)


@dataclass
class _Tally:
    """Running counts; they grow with the variety of the rows and with the patients only."""

    cases: Counter[_Key] = field(default_factory=Counter)
    case_images: Counter[_Key] = field(default_factory=Counter)
    examples: defaultdict[_Key, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    pictures: Counter[tuple[int, int]] = field(default_factory=Counter)
    lengths: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    patients: set[int] = field(default_factory=set)

    def study(self, row: Mapping[str, Any]) -> None:
        case = (row["system"], row["split"], row["language"], row["source"])
        grids = list(zip(row["grid_thw"][1::3], row["grid_thw"][2::3], strict=True))
        self.cases[case] += 1
        self.case_images[case] += len(grids)
        self.pictures.update((width * PATCH_PX, height * PATCH_PX) for height, width in grids)
        self.lengths["images_per_study"][len(grids)] += 1
        # 64 bits of the keyed hash: enough to tell patients apart, an eighth of the memory.
        self.patients.add(int(row["patient_key"][:16], 16))
        text = Report(row["findings"], row["impression"]).text
        if text:
            self.lengths[f"report_characters_{row['language']}"][len(text)] += 1

    def example(self, row: Mapping[str, Any], split: str) -> None:
        kind = (row["system"], split, row["task"], row["language"])
        counts = {"num_examples": 1, "num_truncated": int(row["truncated"])}
        self.examples[kind].update(counts | {name: row[name] for name in _LENGTHS})
        for name in _LENGTHS:
            self.lengths[name.removeprefix("num_")][row[name]] += 1


def collect(store: Store, studies: ArtifactRef, shards: ArtifactRef) -> Statistics:
    """The statistics of two finished artifacts."""
    tally = _Tally()
    for row in clean_rows(store, studies, _STUDY_COLUMNS):
        tally.study(row)
    for split in SPLITS:
        for path in store.list(f"{shards.path}/{split}"):
            for row in _shard_rows(store, path):
                tally.example(row, split)
    ledgers = [json.loads(store.read_bytes(f"{ref.path}/{LEDGER_FILE}")) for ref in (studies, shards)]
    lengths = {
        name: Distribution(dict(sorted(tally.lengths[name].items()))) for name in sorted(tally.lengths)
    }
    return Statistics(
        studies=studies.path,
        shards=shards.path,
        num_patients=len(tally.patients),
        cases=tuple(Cases(*case, num, tally.case_images[case]) for case, num in sorted(tally.cases.items())),
        examples=tuple(_examples(kind, counts) for kind, counts in sorted(tally.examples.items())),
        pictures=tuple(Pictures(*size, num) for size, num in sorted(tally.pictures.items())),
        lengths=lengths,
        ledger=tuple(row for rows in ledgers for row in rows),
    )


def _examples(kind: _Key, counts: Mapping[str, int]) -> Examples:
    num_examples, num_truncated, *tokens = (
        counts[name] for name in ("num_examples", "num_truncated", *_LENGTHS)
    )
    return Examples(*kind, num_examples, num_truncated, *tokens)


def _shard_rows(store: Store, path: str) -> Iterator[dict[str, Any]]:
    with open_shard(store, path) as shard:
        for batch in shard.iter_batches(_ROWS_AT_A_TIME, columns=list(_EXAMPLE_COLUMNS)):
            yield from batch.to_pylist()
