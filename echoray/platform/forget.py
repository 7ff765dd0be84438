"""Forgetting a patient: no later version holds them; what was made from them is named, removed if asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from echoray import artifacts
from echoray.artifacts import Manifest
from echoray.config import RunConfig
from echoray.data.forgotten import remember_to_forget
from echoray.data.records import patients_of
from echoray.registry import versions_made_of
from echoray.storage import Store
from echoray.types import ArtifactRef, ModelVersion

# In the order in which they are made from each other.
_KINDS = (
    "studies", "candidates", "distinct", "screened", "review-sample", "conversations", "shards", "statistics",
    "checkpoint", "model", "predictions", "evaluation",
)  # fmt: skip
# These hold texts, pictures or counts of studies; the others hold weights.
_WITH_DATA = frozenset(_KINDS) - {"checkpoint", "model"}


@dataclass(frozen=True)
class Traces:
    """What was made from a patient's data: artifacts, the nearest first, and registered versions."""

    artifacts: tuple[ArtifactRef, ...]
    versions: tuple[ModelVersion, ...]

    @property
    def with_data(self) -> tuple[ArtifactRef, ...]:
        """The artifacts that hold texts or pictures of the patient, or count them."""
        return tuple(one for one in self.artifacts if one.kind in _WITH_DATA)

    @property
    def weights(self) -> tuple[ArtifactRef, ...]:
        """The checkpoints and models that were trained on the patient, or evaluated on them."""
        return tuple(one for one in self.artifacts if one.kind not in _WITH_DATA)


def forget(run: RunConfig, store: Store, patient_key: str) -> Traces:
    """Keep a patient (a keyed hash) out of every later version, and find what was made from them so far."""
    remember_to_forget(store, patient_key)
    found = traces(store, patient_key)
    return Traces(found, tuple(versions_made_of(run, found)))


def traces(store: Store, patient_key: str) -> tuple[ArtifactRef, ...]:
    """Every finished artifact that was made from studies with the patient."""
    found: dict[ArtifactRef, None] = {}
    for manifest in _manifests(store):
        holds = manifest.ref.kind == "studies" and patient_key in patients_of(store, manifest.ref)
        if holds or any(parent in found for parent in manifest.parents):
            found[manifest.ref] = None
    return tuple(found)


def purge(store: Store, refs: Iterable[ArtifactRef]) -> None:
    """Delete artifacts, each manifest first, so that none is ever found half deleted."""
    for ref in refs:
        store.delete(f"{ref.path}/{artifacts.MANIFEST}")
        store.delete(ref.path)


def _manifests(store: Store) -> Iterable[Manifest]:
    for kind in _KINDS:
        yield from artifacts.finished(store, kind)
