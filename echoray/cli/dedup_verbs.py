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
    from echoray.data.dedup.lines import deduplicate_lines
    from echoray.storage import open_store

    rules = resolve(config, overrides).data.dedup
    store = open_store(str(index.absolute().parent)) if index else None
    known = store is not None and index is not None and store.exists(index.name)
    engine = Deduplicator.load(store, index.name, rules) if store and index and known else Deduplicator(rules)
    with progress_display() as progress:
        ledger = deduplicate_lines(
            source, out, fields=fields or ["text"], engine=engine, dropped=dropped, progress=progress
        )
    if store and index:
        engine.save(store, index.name)
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(ledger.quarantined.items())) or "none"
    console.print(f"{ledger.records_in} lines, {ledger.records_out} kept; not kept: {reasons}")
