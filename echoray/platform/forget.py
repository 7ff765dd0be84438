"""Forgetting a patient: no later version holds them; what was made from them is named, removed if asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from echoray import artifacts
from echoray.artifacts import Manifest
from echoray.config import RunConfig
from echoray.data.forgotten import remember_to_forget
from echoray.data.instruct.answers import CACHE as ANSWERS
from echoray.data.instruct.decisions import ROOT as REVIEWS
from echoray.data.instruct.review import KIND as SAMPLE
from echoray.data.instruct.review import sample_name
from echoray.data.records import studies_of_patient
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
    studies: tuple[str, ...] = ()  # hashes of the patient's studies in any version

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
    found: dict[ArtifactRef, None] = {}
    studies: set[str] = set()
    for manifest in _manifests(store):
        own = _studies(store, manifest.ref, patient_key)
        studies |= own
        if own or any(parent in found for parent in manifest.parents):
            found[manifest.ref] = None
    return Traces(tuple(found), tuple(versions_made_of(run, tuple(found))), tuple(sorted(studies)))


def purge(store: Store, found: Traces) -> None:
    """Delete what holds a patient's data: artifacts, decisions about items, answers about studies.

    Of an artifact the manifest goes first, so that none is ever found half deleted.
    """
    for ref in found.with_data:
        store.delete(f"{ref.path}/{artifacts.MANIFEST}")
        store.delete(ref.path)
        if ref.kind == SAMPLE:
            store.delete(f"{REVIEWS}/{sample_name(ref)}")
    for study in found.studies:
        store.delete(f"{ANSWERS}/{study}")


def _studies(store: Store, ref: ArtifactRef, patient_key: str) -> set[str]:
    return studies_of_patient(store, ref, patient_key) if ref.kind == "studies" else set()


def _manifests(store: Store) -> Iterable[Manifest]:
    for kind in _KINDS:
        yield from artifacts.finished(store, kind)
