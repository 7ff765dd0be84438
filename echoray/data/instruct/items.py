"""The item that travels through generation, deduplication, screening and review."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from echoray.types import Language, System, Task

if TYPE_CHECKING:
    import pyarrow as pa

# What an item asks for: the template's report and diagnosis parts, and the five kinds of VQA (Appendix A).
Part = Literal["report", "diagnosis", "interpretation", "risk", "counseling", "surveillance", "treatment"]
# "open": question and answer are generated; "closed": the answer is taken from the report, word for word.
Form = Literal["open", "closed"]

PARTS: tuple[Part, ...] = get_args(Part)
_OWN = ("item_id", "study_hash", "system", "language", "part", "form", "prompt", "answer")
_ORIGIN = ("generator", "model", "template", "prompt_digest")


@dataclass(frozen=True)
class Provenance:
    """Where an item comes from; equal provenance and an equal model give the same item."""

    generator: str  # the pool member's name in the configuration
    model: str  # what the member calls its model, "rules" for the one without
    template: str  # the id of the template, e.g. "thyroid-nodule"
    prompt_digest: str  # sha256 of the messages that were sent
    seed: int


@dataclass(frozen=True)
class Item:
    """One generated question and answer about a study; ``item_id`` is unique and carries no patient data."""

    item_id: str
    study_hash: str
    system: System
    language: Language
    part: Part
    form: Form
    prompt: str
    answer: str
    provenance: Provenance

    @property
    def task(self) -> Task:
        """The task that the item is an example of; every kind of VQA is one task."""
        return "report" if self.part == "report" else "diagnosis" if self.part == "diagnosis" else "vqa"

    @property
    def text(self) -> str:
        """Question and answer, as deduplication compares them."""
        return f"{self.prompt}\n{self.answer}"

    def to_row(self) -> dict[str, Any]:
        """A flat row of ``item_schema``."""
        row = asdict(self)
        return {**row, **row.pop("provenance")}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Item:
        """The item of a row of ``item_schema``; other columns are left alone."""
        origin = Provenance(**{name: row[name] for name in _ORIGIN}, seed=int(row["seed"]))
        return Item(**{name: row[name] for name in _OWN}, provenance=origin)


def item_schema() -> pa.Schema:
    """The columns of an item in Parquet."""
    import pyarrow as pa

    return pa.schema([*((name, pa.string()) for name in (*_OWN, *_ORIGIN)), ("seed", pa.int64())])


def rejected_schema() -> pa.Schema:
    """The columns of an item and of the reason why it was rejected."""
    import pyarrow as pa

    return item_schema().append(pa.field("reason", pa.string()))
