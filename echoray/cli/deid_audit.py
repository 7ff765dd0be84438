"""``echoray data deid-audit``: what de-identification removes and keeps, measured on labelled frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from echoray.data.deidentify.audit import AuditReport

_GROUPS = ("kind", "language", "style", "tag")
_PREFIX = {"tag": "regions tag: "}


def deid_audit(
    num_overlays: Annotated[int, typer.Option(min=1, help="Labelled frames; about a second each.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds draw other frames.")] = 0,
    out: Annotated[str, typer.Option(help="Folder, file:// or s3:// prefix for audit.json.")] = "deid-audit",
    min_recall: Annotated[float, typer.Option(min=0, max=1, help="Aim for what identifies.")] = 0.995,
    min_retention: Annotated[float, typer.Option(min=0, max=1, help="Aim for what is to stay.")] = 0.99,
) -> None:
    """Measure how much burned-in identity is removed, and how much of the rest is kept."""
    import json

    from echoray.cli.console import console, progress_display
    from echoray.data.deidentify.audit import run_audit
    from echoray.errors import EchoRayError
    from echoray.storage import open_store

    store = open_store(out)
    store.write_bytes("audit.json", b"{}\n")  # a folder that cannot be written to is told now, not at the end
    with progress_display() as progress:
        report = run_audit(num_overlays, seed=seed, progress=progress)
    content = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
    store.write_bytes("audit.json", content.encode() + b"\n")
    _print(report)
    console.print(f"saved: {store.uri('audit.json')}", soft_wrap=True)
    recall, retention = report.rate(goes=True).value, report.rate(goes=False).value
    if recall < min_recall or retention < min_retention:
        raise EchoRayError(
            f"recall {recall:.2%}, retention {retention:.2%}; expected at least {min_recall:.2%} and "
            f"{min_retention:.2%}",
            hint=f"see 'missed' in {store.uri('audit.json')} and echoray/data/deidentify/rules",
        )


def _print(report: AuditReport) -> None:
    from rich.table import Table

    from echoray.cli.console import console

    title = f"{report.num_overlays} labelled frames, seed {report.seed}; with 95% intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("removed", "%", "kept", "%"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("all", *_cells(report), end_section=True)
    for group in _GROUPS:
        values = list(dict.fromkeys(value for name, value, _, _ in report.rows() if name == group))
        for value in values:
            row = f"{_PREFIX.get(group, '')}{value.replace('_', ' ')}"
            table.add_row(row, *_cells(report, **{group: value}), end_section=value == values[-1])
    console.print(table)


def _cells(report: AuditReport, **only: str) -> list[str]:
    cells = []
    for goes in (True, False):
        rate = report.rate(goes=goes, **only)
        share = f"{100 * rate.value:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"
        cells += [f"{rate.good}/{rate.total}", share] if rate.total else ["", ""]
    return cells
