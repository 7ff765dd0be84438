"""``echoray data validate`` and ``echoray data export``: what comes from and goes to other tools."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

if TYPE_CHECKING:
    from echoray.data.validate import Finding

_SHOWN = 200


def validate(
    sources: Annotated[
        list[str], typer.Argument(metavar="PATH_OR_URI...", help="Folders, prefixes or conversation files.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="auto, dicom, image-report, llava, swift or openai.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
) -> None:
    """Name file, row and field of each defect of a source; exit 0 if there is none, else 1."""
    from echoray.data import validate as checks

    run = resolve(config, overrides)
    chosen = _one_of(form, checks.FORMATS, "--format")
    records = defective = 0
    found: list[tuple[str, Finding]] = []
    for source in sources:
        for checked in checks.validate(run, source, chosen):
            records += checked.is_record
            defective += checked.is_record and bool(checked.findings)
            found += [(source, one) for one in checked.findings]
    summary = {"records": records, "defective": defective, "defects": len(found)}
    if as_json:
        typer.echo(json.dumps({**summary, "found": [_plain(*one) for one in found]}, ensure_ascii=False))
    else:
        _print(found, summary)
    if found:
        raise typer.Exit(1)


def export(
    form: Annotated[str, typer.Option("--format", help="llava, swift or openai.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR_OR_URI", help="Where to write.")],
    split: Annotated[str | None, typer.Option(help="train, validation or test; all without it.")] = None,
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the run's clean studies as conversations with their images beside them."""
    from echoray.cli.steps import pipeline
    from echoray.data.export import export_studies
    from echoray.data.sources.dialogs import FORMS
    from echoray.storage import store_at
    from echoray.types import SPLITS

    run = resolve(config, overrides, workspace)
    chosen = _one_of(form, FORMS, "--format")
    part = None if split is None else _one_of(split, SPLITS, "--split")
    target = store_at(run, out)
    with pipeline(run) as steps:
        report = export_studies(run, steps.studies, target, chosen, part, steps.progress)
    typer.echo(
        f"{target.uri(report.file)}: {report.num_conversations} conversations, {report.num_images} images"
    )


def _one_of(value: str, known: tuple[Any, ...], option: str) -> Any:
    if value not in known:
        raise typer.BadParameter(f"{value!r}: expected {', '.join(known)}", param_hint=option)
    return value


def _plain(source: str, one: Finding) -> dict[str, Any]:
    return {"source": source, "file": one.file, "row": one.row, **vars(one.defect)}


def _print(found: list[tuple[str, Finding]], summary: dict[str, int]) -> None:
    from rich.table import Table

    from echoray.cli.console import console
    from echoray.data.sources.defects import EXPLANATIONS

    if found:
        several = len({source for source, _ in found}) > 1
        table = Table()
        for column in (*(["source"] if several else []), "file", "row", "field", "defect", "detail"):
            table.add_column(column, overflow="fold")
        for source, one in found[:_SHOWN]:
            row, bad = "" if one.row is None else str(one.row), one.defect
            told = "; ".join(part for part in (EXPLANATIONS.get(bad.code, ""), bad.detail) if part)
            table.add_row(*([source] if several else []), one.file, row, bad.field, bad.code, told)
        console.print(table)
        if len(found) > _SHOWN:
            console.print(f"... and {len(found) - _SHOWN} more: --json prints all")
        for code, count in Counter(one.defect.code for _, one in found).most_common():
            console.print(f"{count:>7}  {code}")
    console.print(
        f"{summary['records']} records, {summary['defects']} defects in {summary['defective']} of them"
    )
