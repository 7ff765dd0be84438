"""A small artifact of clean studies, whose reports are the exemplars', and runs that generate from it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from echoray import artifacts
from echoray.config import RunConfig, load_run
from echoray.config.screen import ScreenConfig
from echoray.data.instruct.items import Item, Provenance, item_schema
from echoray.data.instruct.review import make_sample
from echoray.data.instruct.templates import templates
from echoray.data.parts import part_name, to_parquet
from echoray.data.prepare import study_schema
from echoray.storage import Store
from echoray.types import SPLITS, ArtifactRef, Language

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def silent(step: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def run_for(workspace: object, **instruct: Any) -> RunConfig:
    """The tiny run in a workspace with changes of ``instruct``."""
    return load_run("tiny").merged({"workspace": str(workspace), "instruct": instruct})


def study_rows(systems: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One study for each exemplar (of ``systems``), and one with imported turns and no report."""
    exemplars = [
        (system, language, one.exemplar(language))
        for system, all_of in templates().items()
        for one in all_of
        for language in LANGUAGES
        if not systems or system in systems
    ]
    rows = [
        _row(number, system, language, exemplar.findings, exemplar.impression)
        for number, (system, language, exemplar) in enumerate(exemplars)
    ]
    turns = [{"task": "vqa", "prompt": "Which organ?", "answer": "The liver."}]
    return [*rows, {**_row(len(rows), "liver", "en", "", ""), "turns": json.dumps(turns)}]


def studies_of(
    store: Store, rows: Sequence[dict[str, Any]], numbers: Sequence[int] = (0, 2, 5)
) -> ArtifactRef:
    """The rows as an artifact in parts of these ``numbers``; as in a real one, numbers may be missing."""
    config = {"studies": [row["study_hash"] for row in rows]}
    ref = artifacts.plan("studies", "case", config=config)
    for place, number in enumerate(numbers):
        content = to_parquet(rows[place :: len(numbers)], study_schema())
        artifacts.write_file(store, ref.path, part_name(number), content)
    artifacts.seal(store, ref, config=config, counts={"studies": len(rows)})
    return ref


def _row(number: int, system: str, language: str, findings: str, impression: str) -> dict[str, Any]:
    return {
        "study_hash": f"{number:064x}"[::-1],
        "patient_key": f"{number:064x}",
        "system": system,
        "language": language,
        "findings": findings,
        "impression": impression,
        "turns": "[]",
        "split": SPLITS[number % len(SPLITS)],
        "source": "corpus",
        "images": [_png(number)],
        "grid_thw": [1, 4, 4],
    }


def _png(shade: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, shade, shade)).save(target, "PNG")
    return target.getvalue()


def item(number: int, study: str, **changes: Any) -> Item:
    """An open item of the pool about a study."""
    model, template = changes.pop("model", "a-model"), changes.pop("template", "liver-benign")
    origin = Provenance("pool-a", model, template, "0" * 64, 0)
    known: dict[str, Any] = {
        "item_id": f"{study[:16]}-open-interpretation-{number}",
        "study_hash": study,
        "system": "liver",
        "language": "en",
        "part": "interpretation",
        "form": "open",
        "prompt": f"What is seen, {number}?",
        "answer": f"Nothing unusual, {number}.",
        "provenance": origin,
    }
    return Item(**{**known, **changes})


def sample_of(store: Store, studies: ArtifactRef, items: Sequence[Item]) -> ArtifactRef:
    """A review sample of all ``items``, as the steps before it would have passed them."""
    config = {"items": [one.item_id for one in items]}
    ref = artifacts.plan("screened", "case", config=config, parents=[studies])
    content = to_parquet([one.to_row() for one in items], item_schema())
    artifacts.write_file(store, ref.path, part_name(0), content)
    artifacts.seal(store, ref, config=config, parents=[studies])
    return make_sample(ScreenConfig(), store, ref, studies, seed=1)
