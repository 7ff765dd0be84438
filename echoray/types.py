"""The typed objects that travel between the steps (frozen; no torch, ray or vllm at import).

Shape legend: H, W frame height and width in pixels; B rows; T tokens per row; P patches; I images.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

System = Literal["liver", "kidney", "thyroid", "vessel", "gynecology", "heart", "breast"]
Task = Literal["report", "diagnosis", "vqa"]
Language = Literal["en", "zh"]
Split = Literal["train", "validation", "test"]
# "dynamic": sides follow the picture's aspect within a pixel budget; "square": all are size x size.
ImageLayout = Literal["dynamic", "square"]

# Called with (step, done, total or None); the CLI draws it, jobs log it.
Progress = Callable[[str, int, "int | None"], None]

SYSTEMS: tuple[System, ...] = get_args(System)
TASKS: tuple[Task, ...] = get_args(Task)
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Box:
    """A pixel rectangle, x0/y0 inclusive and x1/y1 exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Region:
    """One item of the Sequence of Ultrasound Regions (0018,6011)."""

    box: Box
    data_type: int  # (0018,6014): 1 tissue, 2 colour flow, 3 PW spectral, ...
    spatial_format: int  # (0018,6012): 1 two-dimensional, 2 M-mode, 3 spectral, ...
    mm_per_px: float | None  # 10 * (0018,602C) when (0018,6024) = 3 (cm)


@dataclass(frozen=True)
class Frame:
    """One key frame: ``pixels`` is uint8 RGB of shape (H, W, 3), ``cine`` its file's place in the study."""

    pixels: NDArray[np.uint8]
    regions: tuple[Region, ...] = ()
    cine: int = 0


@dataclass(frozen=True)
class Report:
    """A clinical report in two sections."""

    findings: str
    impression: str

    @property
    def text(self) -> str:
        """Findings, a newline, then the impression; the report task's reference answer."""
        return f"{self.findings}\n{self.impression}".strip()


@dataclass(frozen=True)
class Turn:
    """A question about a study and its answer, as an imported conversation holds them."""

    task: Task
    prompt: str
    answer: str


@dataclass(frozen=True)
class Study:
    """One examination between ingest and tokenize; it has a report, imported turns, or both.

    ``study_hash`` and ``patient_key`` are keyed hashes (HMAC-SHA256, hex). ``identifiers`` holds the header's
    own identifying strings for the pixel and text rules, ``date`` the Study Date (0008,0020) for the text
    rules; de-identification empties both.
    """

    study_hash: str
    patient_key: str
    system: System | None
    language: Language
    frames: tuple[Frame, ...]
    report: Report | None
    source: str  # "corpus", "package-samples", "dicom", "dicomweb": never a path that could name a patient
    identifiers: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    date: datetime.date | None = None


@dataclass(frozen=True)
class Rejection:
    """Why a record went to quarantine; ``detail`` carries no patient data."""

    record: str  # study hash, or the ordinal name of an unreadable file
    step: str
    reason: str  # reason code, e.g. "multi_region"
    detail: str = ""


@dataclass(frozen=True)
class Conversation:
    """One instruction example of a study."""

    example_id: str
    study_hash: str
    system: System
    task: Task
    language: Language
    prompt: str
    answer: str


@dataclass(frozen=True)
class ArtifactRef:
    """A pointer to a versioned artifact: ``<kind>/<name>-<digest8>/`` below a store's root."""

    kind: str
    name: str
    digest: str  # sha256 hex of kind, name, resolved config and parents

    @property
    def path(self) -> str:
        """The artifact's folder, relative to the store's root."""
        return f"{self.kind}/{self.name}-{self.digest[:8]}"


@dataclass(frozen=True)
class Ledger:
    """Counts of one step; ``records_in == records_out + sum(quarantined.values())`` always holds.

    ``shortened`` says, by reason, how many records of ``records_out`` lost a part.
    """

    step: str
    records_in: int
    records_out: int
    quarantined: Mapping[str, int] = field(default_factory=dict)
    shortened: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lost = self.records_in - self.records_out - sum(self.quarantined.values())
        if lost:
            raise ValueError(f"ledger of {self.step} does not reconcile: {lost} records unaccounted for")


@dataclass(frozen=True)
class ModelVersion:
    """A registered model: registry name, version number, and the exported artifact it points to."""

    name: str
    version: int
    artifact: ArtifactRef
    alias: str | None = None
