"""The evaluation step without workers: what identifies a measurement, and shards that cannot be measured."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from echoray import artifacts
from echoray.config import RunConfig, load_run
from echoray.data.batch import SCHEMA_KEY, SHARD_SCHEMA
from echoray.errors import EvaluationError
from echoray.evaluate import compute, evaluate, load_report
from echoray.evaluate.examples import Entry, list_entries
from echoray.evaluate.predict import Candidate
from echoray.registry.record import read_figures
from echoray.storage import store_of
from echoray.types import SYSTEMS, ArtifactRef

NUM_REPORTS = 12


def silent(step: str, done: int, total: int | None) -> None:
    return None


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    settings = {"bootstrap_samples": 0, "num_pictures": 0}
    return load_run("tiny").merged({"workspace": str(tmp_path), "evaluate": settings})


@pytest.fixture
def models(tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, ArtifactRef]:
    """Two models that answer without being run."""

    def answers(
        run: RunConfig,
        store: Any,
        shards: ArtifactRef,
        candidates: Sequence[Candidate],
        entries: Any,
        *_: Any,
    ) -> dict[str, dict[str, str]]:
        return {one.label: {entry.example_id: entry.answer for entry in entries} for one in candidates}

    monkeypatch.setattr(compute, "predict", answers)
    return {label: make(run, "model", label, {"w": label.encode()}) for label in ("stage 1", "stage 2")}


def make(run: RunConfig, kind: str, name: str, files: dict[str, bytes]) -> ArtifactRef:
    ref = artifacts.plan(kind, name, config={"of": "a test"})

    def build(folder: Path) -> dict[str, int]:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return {}

    artifacts.produce(store_of(run), ref, build, config={"of": "a test"})
    return ref


def make_shards(run: RunConfig, name: str, ids: Sequence[str] = (), task: str = "report") -> ArtifactRef:
    image = io.BytesIO()
    Image.new("RGB", (28, 28)).save(image, "PNG")
    rows = [
        {
            "example_id": example_id,
            "study_hash": example_id,
            "system": SYSTEMS[index % len(SYSTEMS)],
            "task": task if index % 3 else "report",
            "language": "en",
            "prompt": "Report?",
            "answer": f"The {SYSTEMS[index % len(SYSTEMS)]}.",
            "num_tokens": 9,
            "images": [image.getvalue()],
        }
        for index, example_id in enumerate(ids or [f"e{number}" for number in range(NUM_REPORTS)])
    ]
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({SCHEMA_KEY: SHARD_SCHEMA}), target)
    return make(run, "shards", name, {"test/part-00000.parquet": target.getvalue()})


def test_what_was_measured_and_how_it_was_decoded_decide_whether_figures_compare(
    run: RunConfig, models: dict[str, ArtifactRef]
) -> None:
    shards, other = make_shards(run, "s", task="vqa"), make_shards(run, "other", task="vqa")

    def digest(shards: ArtifactRef = shards, label: str = "stage 1", **changes: Any) -> str:
        changed = run.merged({"train": changes} if "precision" in changes else {"evaluate": changes})
        ref = evaluate(changed, shards=shards, models={label: models[label]}, progress=silent)
        figures = read_figures(store_of(run), ref, models[label])
        assert figures.test_digest == load_report(run, ref).test_digest
        return figures.test_digest

    whole = digest()
    different = [
        digest(max_examples=3),
        digest(max_examples=2),
        digest(tasks=["report", "vqa"]),
        digest(max_new_tokens=7),
        digest(precision="fp32" if run.train.precision == "bf16" else "bf16"),
        digest(other),
    ]
    assert len({whole, *different}) == 1 + len(different)
    # Neither who is measured, nor how the work is cut, nor what is drawn.
    assert {digest(label="stage 2"), digest(batch_size=3), digest(num_pictures=1)} == {whole}
    assert digest(max_examples=NUM_REPORTS) == whole


def test_a_champion_is_never_beaten_on_five_examples(
    run: RunConfig, models: dict[str, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    from echoray.registry import register
    from echoray.registry import versions as module

    shards = make_shards(run, "s")
    few = run.merged({"evaluate": {"max_examples": 5}})
    poor = run.merged({"evaluate": {"max_examples": None}})
    answers = compute.predict

    def halved(*arguments: Any) -> dict[str, dict[str, str]]:
        return {
            label: {key: text.split()[0] for key, text in texts.items()}
            for label, texts in answers(*arguments).items()
        }

    with monkeypatch.context() as patched:
        patched.setattr(compute, "predict", halved)
        whole = evaluate(poor, shards=shards, models={"a": models["stage 1"]}, progress=silent)
    assert register(poor, models["stage 1"], whole).alias == module.CHAMPION
    lucky = evaluate(few, shards=shards, models={"a": models["stage 2"]}, progress=silent)
    assert load_report(run, lucky).mean("a", "report", "rouge_l") == 100
    assert register(few, models["stage 2"], lucky).alias == module.CHALLENGER


def test_example_ids_that_occur_twice_are_refused_with_their_number_before_anything_runs(
    run: RunConfig, models: dict[str, ArtifactRef]
) -> None:
    shards = make_shards(run, "s", ids=["e0", "e1", "e1", "e2", "e3", "e3", "e3"])
    refused = r"2 example ids occur more than once in the test split, on 5 of its 7 examples"
    for changes in ({}, {"max_examples": 1}):
        changed = run.merged({"evaluate": changes})
        with pytest.raises(EvaluationError, match=refused):
            evaluate(changed, shards=shards, models=dict(models), progress=silent)
    assert not store_of(run).list("evaluation")


def test_the_examples_of_a_shard_are_listed_in_its_order_and_limited(run: RunConfig) -> None:
    entries: list[Entry] = list_entries(store_of(run), make_shards(run, "s"), ["report"], 5)
    assert [one.example_id for one in entries] == [f"e{number}" for number in range(5)]
    assert json.dumps([one.row for one in entries]) == "[0, 1, 2, 3, 4]"
