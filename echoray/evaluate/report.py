"""From predictions to figures: per system and metric, averages, and whether the right system is named."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from echoray.data.anatomy import named_system
from echoray.errors import EvaluationError
from echoray.evaluate.examples import Entry
from echoray.evaluate.intervals import percentile_interval, resampled_means
from echoray.evaluate.text_metrics import METRICS, score
from echoray.types import SYSTEMS

SCHEMA_VERSION = 1
AVERAGE = "average"

Predictions = Mapping[str, str]  # example_id -> generated text


@dataclass(frozen=True)
class Row:
    """One figure (0-100) with its 95% interval; ``system`` is AVERAGE for the mean over systems."""

    model: str
    task: str
    system: str
    metric: str
    mean: float
    interval: tuple[float, float] | None
    num_examples: int


@dataclass(frozen=True)
class EvalReport:
    """The figures of some models on one test split.

    ``test_digest`` identifies the examples and the decoding: figures compare only where it is the same.
    ``models`` maps labels to weight digests, ``system_accuracy`` labels to the share (0-1) of generated
    reports that name the right system most often, ``counts`` tasks to their number of examples.
    """

    test_digest: str
    models: Mapping[str, str]
    rows: tuple[Row, ...]
    system_accuracy: Mapping[str, float]
    counts: Mapping[str, int]

    def mean(self, model: str, task: str, metric: str, system: str = AVERAGE) -> float:
        """One figure; EvaluationError where it was not computed."""
        return self.row(model, task, metric, system).mean

    def row(self, model: str, task: str, metric: str, system: str = AVERAGE) -> Row:
        """One figure with its interval; EvaluationError where it was not computed."""
        wanted = (model, task, metric, system)
        for row in self.rows:
            if (row.model, row.task, row.metric, row.system) == wanted:
                return row
        raise EvaluationError(f"no figure for {wanted}", hint=f"models: {list(self.models)}, see report.json")

    def systems(self, task: str) -> list[str]:
        """The systems that ``task`` has figures for, in the order of ``SYSTEMS``."""
        found = {row.system for row in self.rows if row.task == task}
        return [system for system in SYSTEMS if system in found]

    def to_json(self) -> str:
        """The content of report.json."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str | bytes) -> EvalReport:
        """Read report.json; EvaluationError on another schema version."""
        raw = json.loads(text)
        version = raw.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise EvaluationError(
                f"report.json: schema v{version}, expected v{SCHEMA_VERSION}", hint="evaluate again"
            )
        rows = [row | {"interval": row["interval"] and tuple(row["interval"])} for row in raw.pop("rows")]
        return EvalReport(**raw, rows=tuple(Row(**row) for row in rows))


def summarise(
    entries: Sequence[Entry],
    predictions: Mapping[str, Predictions],
    *,
    test_digest: str,
    models: Mapping[str, str],
    num_samples: int,
    seed: int,
) -> EvalReport:
    """Score every model's predictions (label -> example_id -> text) against the entries' answers."""
    tasks = sorted({entry.task for entry in entries}, key=[entry.task for entry in entries].index)
    rows: list[Row] = []
    for label in models:
        for task in tasks:
            own = [entry for entry in entries if entry.task == task]
            rows += _task_rows(label, task, own, predictions[label], num_samples, seed)
    reports = [entry for entry in entries if entry.task == "report"]
    accuracy = {label: system_accuracy(reports, predictions[label]) for label in models if reports}
    counts = {str(task): sum(entry.task == task for entry in entries) for task in tasks}
    return EvalReport(test_digest, dict(models), tuple(rows), accuracy, counts)


def system_accuracy(entries: Sequence[Entry], predictions: Predictions) -> float:
    """Share of texts whose words name the entry's system, and no other one as often."""
    right = sum(named_system(predictions[entry.example_id]) == entry.system for entry in entries)
    return right / len(entries)


def _task_rows(
    label: str, task: str, entries: Sequence[Entry], predictions: Predictions, num_samples: int, seed: int
) -> list[Row]:
    rows: list[Row] = []
    means_M: list[NDArray[np.float64]] = []
    resampled_SM: list[NDArray[np.float64]] = []
    for system in SYSTEMS:
        own = [entry for entry in entries if entry.system == system]
        if not own:
            continue
        scores_NM = np.array([score(entry.answer, predictions[entry.example_id]) for entry in own])
        # The same resamples for every model, whatever models there are.
        rng = np.random.default_rng((seed, zlib.crc32(f"{task}/{system}".encode())))
        means_M.append(scores_NM.mean(axis=0))
        resampled_SM.append(resampled_means(scores_NM, [one.study_hash for one in own], num_samples, rng))
        rows += _rows(label, task, system, means_M[-1], resampled_SM[-1], len(own))
    average_M, average_SM = np.mean(means_M, axis=0), np.mean(resampled_SM, axis=0)
    return [*rows, *_rows(label, task, AVERAGE, average_M, average_SM, len(entries))]


def _rows(
    label: str,
    task: str,
    system: str,
    means_M: NDArray[np.float64],
    resampled_SM: NDArray[np.float64],
    num_examples: int,
) -> list[Row]:
    intervals = percentile_interval(resampled_SM)
    return [
        Row(label, task, system, metric, float(mean), interval, num_examples)
        for metric, mean, interval in zip(METRICS, means_M, intervals, strict=True)
    ]
