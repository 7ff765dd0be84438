"""Deduplication of JSON lines, from a file to files, one line at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from echoray.data.dedup.engine import Decision, Deduplicator
from echoray.errors import InputDataError
from echoray.storage import Store, open_store
from echoray.types import Ledger, Progress

_AT_ONCE = 4096
_STEP = "deduplicated lines"


@dataclass
class LineCounts:
    """How many lines were kept, dropped and refused, by reason."""

    lines: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def ledger(self) -> Ledger:
        """The ledger of the step."""
        return Ledger("dedup", self.lines, self.lines - self.reasons.total(), dict(self.reasons))


def deduplicate_lines(
    source: Path,
    target: Path,
    *,
    fields: Sequence[str],
    engine: Deduplicator,
    dropped: Path | None,
    progress: Progress,
) -> Ledger:
    """Copy the lines that are kept; of the others number, reason and first similar text go to ``dropped``.

    Of each object the text fields ``fields`` are compared, joined by line breaks. Files appear at the end.
    Raises InputDataError where ``source`` is no readable file.
    """
    counts = LineCounts()
    with TemporaryDirectory(prefix="echoray-") as folder:
        kept, gone = Path(folder) / "kept", Path(folder) / "dropped"
        with _opened(source) as lines, kept.open("wb") as out, gone.open("wb") as left:
            numbered = enumerate(lines, 1)
            while some := list(islice(numbered, _AT_ONCE)):
                _sort(some, fields, engine, out, left, counts)
                progress(_STEP, counts.lines, None)
        for made, wanted in ((kept, target), (gone, dropped)):
            if wanted is not None:
                folder_of(wanted).upload(made, wanted.name)
    return counts.ledger()


def _sort(
    numbered: Sequence[tuple[int, bytes]],
    fields: Sequence[str],
    engine: Deduplicator,
    out: IO[bytes],
    left: IO[bytes],
    counts: LineCounts,
) -> None:
    texts = [_text_of(line, fields) for _, line in numbered]
    decisions: Iterator[Decision] = engine.add([one for one in texts if one is not None])
    for (number, line), text in zip(numbered, texts, strict=True):
        counts.lines += 1
        if text is None:
            found: dict[str, object] = {"line": number, "reason": "malformed"}
        else:
            decision = next(decisions)
            if decision.kept:
                out.write(line.rstrip(b"\r\n") + b"\n")
                continue
            found = {"line": number, "reason": decision.reason, "first_similar": decision.partner}
        counts.reasons[str(found["reason"])] += 1
        left.write(json.dumps(found).encode() + b"\n")


def _text_of(line: bytes, fields: Sequence[str]) -> str | None:
    """The compared text of a line, or None where it is no object with these text fields."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    values = [record.get(name) for name in fields] if isinstance(record, dict) else []
    texts = [one for one in values if isinstance(one, str)]
    return "\n".join(texts) if len(texts) == len(fields) else None


def _opened(source: Path) -> IO[bytes]:
    try:
        return source.open("rb")
    except OSError as error:
        raise InputDataError(f"{source}: {error.strerror}", hint="name a file of JSON lines") from None


def folder_of(path: Path) -> Store:
    """The store of the folder that a file lies in."""
    return open_store(str(path.absolute().parent))
