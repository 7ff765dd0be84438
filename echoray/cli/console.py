"""What the terminal sees: progress (rich on a terminal, plain lines otherwise), tables, errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from echoray.types import Progress

# Paths, hints and generated answers hold brackets and colons: no string is read as markup or emoji.
# Style with ``style=`` or Text.
console = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)
_PLAIN_EVERY_S = 10.0


@contextmanager
def progress_display() -> Iterator[Progress]:
    """Yield a progress callback that draws bars on a terminal and prints plain lines elsewhere."""
    if console.is_terminal:
        with _bars() as report:
            yield report
    else:
        yield _plain_lines()


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=console) as bars:
        tasks: dict[str, object] = {}

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def _plain_lines() -> Progress:
    last: dict[str, float] = {}

    def report(step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done != total and now - last.get(step, -_PLAIN_EVERY_S) < _PLAIN_EVERY_S:
            return
        last[step] = now
        of = f"/{total}" if total is not None else ""
        print(f"{step}: {done}{of}", flush=True)

    return report


def fail(message: str, hint: str) -> None:
    """Print an error and what to do next to stderr, without colour codes when it is not a terminal."""
    stderr.print(Text.assemble(("error", "bold red"), f": {message}"), soft_wrap=True)
    stderr.print(Text.assemble(("hint", "bold"), f": {hint}"), soft_wrap=True)
    sys.stderr.flush()
