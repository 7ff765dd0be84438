"""The evaluation step: predictions of every model, figures, pages (artifact kind "evaluation")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echoray import artifacts
from echoray.config import RunConfig, digest
from echoray.errors import EvaluationError
from echoray.evaluate.examples import Entry, list_entries, load_cases, pick_entries
from echoray.evaluate.pages import draw_case, render_html, render_table
from echoray.evaluate.predict import Candidate, predict
from echoray.evaluate.report import EvalReport, summarise
from echoray.storage import store_of
from echoray.types import ArtifactRef, Progress

REPORT_FILE = "report.json"


def evaluate(
    run: RunConfig, *, shards: ArtifactRef, models: Mapping[str, Path | ArtifactRef], progress: Progress
) -> ArtifactRef:
    """Evaluate ``models`` (label -> directory or model artifact) on the test split of ``shards``.

    Writes predictions.parquet, report.json, table.md, report.html and cases/*.png; reuses what is finished.
    Raises EvaluationError where there is no model or no test example.
    """
    if not models:
        raise EvaluationError("no model to evaluate", hint="name at least one model")
    store = store_of(run)
    candidates = [Candidate.of(label, source) for label, source in models.items()]
    config = {
        "evaluate": run.evaluate.model_dump(mode="json", exclude={"batch_size"}),
        "precision": run.train.precision,
        "models": [[one.label, one.digest] for one in candidates],
        "seed": run.seed,
    }
    parents = [shards, *(one.source for one in candidates if isinstance(one.source, ArtifactRef))]
    ref = artifacts.plan("evaluation", run.name, config=config, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    entries = list_entries(store, shards, run.evaluate.tasks, run.evaluate.max_examples)
    predictions = predict(run, store, shards, candidates, entries, progress)
    report = summarise(
        entries,
        predictions,
        test_digest=_measured(run, shards, entries),
        models={one.label: one.digest for one in candidates},
        num_samples=run.evaluate.bootstrap_samples,
        seed=run.seed,
    )

    def build(folder: Path) -> Mapping[str, Any]:
        _write_predictions(folder / "predictions.parquet", entries, predictions)
        _write_pages(run, folder, entries, predictions, report, progress)
        return {"examples": dict(report.counts), "models": list(report.models)}

    artifacts.produce(store, ref, build, config=config, parents=parents)
    return ref


def _measured(run: RunConfig, shards: ArtifactRef, entries: Sequence[Entry]) -> str:
    """Identifies what the figures were measured on and how; only figures that share it may be compared."""
    decoding = {"max_new_tokens": run.evaluate.max_new_tokens, "precision": run.train.precision}
    return digest(
        {
            "shards": shards.digest,
            "examples": sorted(entry.example_id for entry in entries),
            "decoding": {"method": "greedy", **decoding},
        }
    )


def _write_pages(
    run: RunConfig,
    folder: Path,
    entries: Sequence[Entry],
    predictions: Mapping[str, Mapping[str, str]],
    report: EvalReport,
    progress: Progress,
) -> None:
    """Write report.json, table.md, the case pictures and report.html below ``folder``."""
    (folder / REPORT_FILE).write_text(report.to_json())
    (folder / "table.md").write_text(render_table(report))
    (folder / "cases").mkdir()
    cases = load_cases(store_of(run), pick_entries(entries, run.evaluate.num_pictures))
    pictures = []
    for number, case in enumerate(cases, start=1):
        outputs = {label: texts[case.example_id] for label, texts in predictions.items()}
        pictures.append(draw_case(case, outputs))
        (folder / f"cases/{number:02d}-{case.system}.png").write_bytes(pictures[-1])
        progress("case pictures", number, len(cases))
    (folder / "report.html").write_text(render_html(run, report, pictures))


def load_report(run: RunConfig, ref: ArtifactRef) -> EvalReport:
    """The figures of a finished evaluation; ArtifactError where it is not finished."""
    store = store_of(run)
    artifacts.require(store, ref, made_by="echoray evaluate")
    return EvalReport.from_json(store.read_bytes(f"{ref.path}/{REPORT_FILE}"))


def _write_predictions(
    path: Path, entries: Sequence[Entry], predictions: Mapping[str, Mapping[str, str]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "model": label,
            "example_id": entry.example_id,
            "study_hash": entry.study_hash,
            "system": entry.system,
            "task": entry.task,
            "reference": entry.answer,
            "prediction": texts[entry.example_id],
        }
        for label, texts in predictions.items()
        for entry in entries
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
