"""``echoray data dedup``: near duplicates out of a file of JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, resolve


def dedup(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="One JSON object a line.")],
    out: Annotated[Path, typer.Option("--out", metavar="OUT.jsonl", help="Where the kept lines go.")],
    fields: Annotated[
        list[str] | None, typer.Option("--field", help="A text field that is compared; repeatable.")
    ] = None,
    dropped: Annotated[Path | None, typer.Option(help="Where number and reason of the others go.")] = None,
    index: Annotated[
        Path | None, typer.Option(help="Kept texts of earlier runs; read where it is there, then written.")
    ] = None,
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
) -> None:
    """Drop each line whose text is too close to one kept before it (ROUGE-L, SimHash: keys of data.dedup)."""
    from echoray.cli.console import console, progress_display
    from echoray.data.dedup import Deduplicator
    from echoray.data.dedup.lines import deduplicate_lines, folder_of

    rules = resolve(config, overrides).data.dedup
    engine = Deduplicator(rules)
    if index and folder_of(index).exists(index.name):
        engine = Deduplicator.load(folder_of(index), index.name, rules)
    with progress_display() as progress:
        ledger = deduplicate_lines(
            source, out, fields=fields or ["text"], engine=engine, dropped=dropped, progress=progress
        )
    if index:
        engine.save(folder_of(index), index.name)
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(ledger.quarantined.items())) or "none"
    console.print(f"{ledger.records_in} lines, {ledger.records_out} kept; not kept: {reasons}")
