"""Rows of JSON, JSONL and CSV files with their positions; a bad row is told and does not end the others."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from echoray.data.sources.defects import Defect

_ENCODINGS = ("utf-8-sig", "gb18030")


@dataclass(frozen=True)
class Row:
    """One record: ``number`` is the line (JSONL), the place from 1 (JSON), or the spreadsheet's row (CSV)."""

    number: int
    value: dict[str, Any]
    defect: Defect | None = None


def decoded(content: bytes) -> str:
    """Text of UTF-8 or GB18030, whichever most lines are; bytes that are neither become lone surrogates."""
    lines = [line for line in content.split(b"\n") if not line.isascii()]
    as_utf8 = sum(_decodes(line) for line in lines)
    encoding = _ENCODINGS[0] if 2 * as_utf8 >= len(lines) else _ENCODINGS[1]
    return content.decode(encoding, errors="surrogateescape")


def is_text(text: str) -> bool:
    """False where ``text`` has lone surrogates: undecodable bytes, or half of a JSON escape pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """``text`` with what no terminal can show (undecodable bytes of a name) spelled out."""
    return text.encode(errors="backslashreplace").decode()


def json_rows(handle: IO[bytes], name: str) -> Iterator[Row]:
    """The records of a ``.jsonl`` file, line by line, or of a JSON file (a list, or one record)."""
    if name.lower().endswith(".jsonl"):
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _record(number, *parsed_json(line.rstrip(b"\r\n"), line_number=number))
        return
    values, defect = parsed_json(handle.read())
    for number, value in enumerate(values if isinstance(values, list) else [values], start=1):
        yield _record(number, value, defect)


def parsed_json(content: bytes, line_number: int = 0) -> tuple[Any, Defect | None]:
    """The JSON value, or the defect with its line and column; ``line_number`` is the content's own line."""
    try:
        return json.loads(content.decode("utf-8-sig")), None
    except UnicodeDecodeError as error:
        lines = content[: error.start].split(b"\n")
        return None, Defect("not_utf8", "", f"line {line_number or len(lines)} byte {len(lines[-1]) + 1}")
    except json.JSONDecodeError as error:
        return None, Defect("bad_json", "", f"line {line_number or error.lineno} column {error.colno}")
    except (RecursionError, ValueError):  # nested too deeply, a number with too many digits
        return None, Defect("bad_json")


def _record(number: int, value: Any, defect: Defect | None) -> Row:
    if defect is None and not isinstance(value, dict):
        defect = Defect("unknown_format", "", "expected an object")
    if defect is None and not is_text(json.dumps(value, ensure_ascii=False)):
        defect = Defect("not_utf8")
    return Row(number, value if defect is None else {}, defect)


def csv_rows(content: bytes) -> tuple[list[str], Iterator[Row]]:
    """Column names (lower case) and the rows of a comma-separated table; empty lines are no rows."""
    reader = csv.reader(io.StringIO(decoded(content), newline=""), strict=True)
    try:
        names = [printable(name).strip().lower() for name in next(reader, [])]
        columns = [name.replace(" ", "_") for name in names]
    except csv.Error:
        columns = []
    return columns, _csv_rows(reader, columns)


def _csv_rows(reader: Iterator[list[str]], columns: list[str]) -> Iterator[Row]:
    number = 1
    while True:
        number += 1
        try:
            cells = next(reader, None)
        except csv.Error:  # the next call begins with the next line
            yield Row(number, {}, Defect("bad_csv"))
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        defect = None
        if len(cells) != len(columns):
            defect = Defect("bad_csv", "", f"{len(cells)} cells, expected {len(columns)}")
        elif not all(map(is_text, cells)):
            wrong = [name for name, cell in zip(columns, cells, strict=True) if not is_text(cell)]
            defect = Defect("not_utf8", ", ".join(wrong))
        yield Row(number, dict(zip(columns, map(str.strip, cells), strict=False)), defect)


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
