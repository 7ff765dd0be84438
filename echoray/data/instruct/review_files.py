"""A sample as a file for reviewing elsewhere, and decisions from such a file: JSON lines or CSV.

In CSV a cell that a spreadsheet would run as a formula begins with an apostrophe, which is taken off again
when decisions are read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from echoray.data.instruct.decisions import Decision, DecisionError, DecisionLog, checked_decision
from echoray.data.instruct.review import Sampled, sample_name
from echoray.errors import InputDataError
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef

_SHOWN = ("item_id", "system", "language", "part", "findings", "impression", "prompt", "answer")
_SAID = ("choice", "reason", "new_prompt", "new_answer")  # empty: for the reviewer to fill in
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SHOWN_DEFECTS = 10


def export_sample(items: Sequence[Sampled], target: Path) -> None:
    """Write the sample to ``target`` (.jsonl or .csv), without who generated what."""
    rows = [_row(one) for one in items]
    if _is_csv(target):
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, (*_SHOWN, *_SAID))
        writer.writeheader()
        writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
        text = "\ufeff" + content.getvalue()  # without it spreadsheets take UTF-8 for something else
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    open_store(str(target.absolute().parent)).write_bytes(target.name, text.encode())


def import_decisions(
    store: Store, sample: ArtifactRef, items: Sequence[Sampled], source: Path, reviewer: str
) -> int:
    """Take the decisions of a file, all or none; how many were new.

    A row whose ``choice`` is empty is not decided. Raises InputDataError naming line and defect.
    """
    known = {one.item.item_id for one in items}
    defects: list[str] = []
    found: list[Decision] = []
    for line, row in _rows(source):
        if not row.get("choice"):
            continue
        try:
            decision = checked_decision(_values(row, reviewer))
        except DecisionError as error:
            defects.append(f"line {line}: {error.message} ({error.hint})")
            continue
        if decision.item_id in known:
            found.append(decision)
        else:
            defects.append(f"line {line}: item_id is not of this sample")
    if defects:
        more = f"\n  and {len(defects) - _SHOWN_DEFECTS} more" if len(defects) > _SHOWN_DEFECTS else ""
        listed = "\n  ".join(defects[:_SHOWN_DEFECTS])
        raise InputDataError(f"{source}: nothing was taken\n  {listed}{more}", hint="mend these lines")
    return _taken(DecisionLog(store, sample_name(sample)), found)


def _taken(log: DecisionLog, found: Sequence[Decision]) -> int:
    """Append what the reviewer does not say yet, so that a file read twice changes nothing."""
    said = {(one.reviewer, one.item_id): _content(one) for one in log.current()}
    new = [one for one in found if said.get((one.reviewer, one.item_id)) != _content(one)]
    for one in new:
        log.append(one)
    return len(new)


def _content(one: Decision) -> tuple[str | None, ...]:
    return (one.choice, one.reason, one.prompt, one.answer)


def _row(one: Sampled) -> dict[str, str]:
    values = {**vars(one.item), **vars(one.report)}
    return {**{name: str(values[name]) for name in _SHOWN}, **dict.fromkeys(_SAID, "")}


def _values(row: Mapping[str, Any], reviewer: str) -> dict[str, Any]:
    edit = row.get("choice") == "edit"
    texts = {"prompt": row.get("new_prompt"), "answer": row.get("new_answer")} if edit else {}
    known = {name: row.get(name) or None for name in ("item_id", "choice", "reason")}
    return {**known, **texts, "reviewer": reviewer}


def _rows(source: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file with the number of the line they begin in."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputDataError(
            f"{source}: {getattr(error, 'strerror', None) or 'not UTF-8'}", hint="name a .jsonl or .csv file"
        ) from None
    if _is_csv(source):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if missing := {"item_id", "choice"} - set(reader.fieldnames or ()):
            raise InputDataError(f"{source}: no column {min(missing)}", hint="keep the exported header")
        for row in reader:
            yield reader.line_num, {name: _plain(value) for name, value in row.items() if name}
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            value = json.loads(line) if line.strip() else {}
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise InputDataError(f"{source}: line {number}: not a JSON object", hint="mend this line")
        yield number, value


def _is_csv(path: Path) -> bool:
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise InputDataError(f"{path}: neither .jsonl nor .csv", hint="name a file with one of these endings")
    return path.suffix.lower() == ".csv"


def _harmless(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value


def _plain(value: Any) -> Any:
    marked = isinstance(value, str) and value.startswith("'") and value[1:].startswith(_FORMULA)
    return value[1:] if marked else value
