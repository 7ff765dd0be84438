"""What a version is registered with: parameters, figures and lineage. No data source, path or secret."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from echoray import __version__, artifacts
from echoray.config import RunConfig
from echoray.errors import RegistryError
from echoray.storage import Store
from echoray.types import ArtifactRef

CHAMPION_METRIC = "report/average/rouge_l"

# Not where the studies come from: such names can identify a site or a patient.
_RECORDED = {"name", "seed", "model", "train", "evaluate"}
_RECORDED_DATA = {
    "language",
    "split",
    "image_size_px",
    "image_layout",
    "max_frames",
    "max_length_tokens",
    "vqa_per_study",
}


@dataclass(frozen=True)
class Figures:
    """A model's figures, ``<task>/<system>/<metric>`` (0-100), and the digest of what was measured."""

    metrics: Mapping[str, float]
    test_digest: str

    @property
    def rouge_l(self) -> float | None:
        """The figure that champions are compared by; None where no reports were evaluated."""
        return self.metrics.get(CHAMPION_METRIC)


def read_figures(store: Store, evaluation: ArtifactRef, model: ArtifactRef) -> Figures:
    """The figures of ``model`` from report.json; RegistryError where the evaluation did not include it."""
    artifacts.require(store, evaluation, made_by="echoray evaluate")
    report = json.loads(store.read_bytes(f"{evaluation.path}/report.json"))
    label = next((name for name, digest in report["models"].items() if digest == model.digest), None)
    if label is None:
        raise RegistryError(
            f"{evaluation.path} has no figures of {model.path}",
            hint="evaluate the model before registering it",
        )
    metrics = {
        f"{row['task']}/{row['system']}/{row['metric']}": float(row["mean"])
        for row in report["rows"]
        if row["model"] == label
    }
    if label in report["system_accuracy"]:
        metrics["report/system_accuracy"] = float(report["system_accuracy"][label])
    return Figures(metrics, report["test_digest"])


def params(run: RunConfig) -> dict[str, str]:
    """The hyperparameters, flat: ``train.align.learning_rate`` and so on."""
    recorded = run.model_dump(mode="json", include=_RECORDED)
    recorded["data"] = run.data.model_dump(mode="json", include=_RECORDED_DATA)
    return {key: str(value) for key, value in _flatten(recorded)}


def lineage_tags(store: Store, model: ArtifactRef, evaluation: ArtifactRef) -> dict[str, str]:
    """Tags that name the artifacts behind a version, with digests, and the code's version."""
    lineage = [{"path": one.path, "digest": one.digest} for one, _ in artifacts.lineage(store, model)]
    return {
        "echoray.code_version": __version__,
        "echoray.evaluation": store.uri(evaluation.path),
        "echoray.evaluation_digest": evaluation.digest,
        "echoray.lineage": json.dumps(lineage),
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
