"""``echoray data deid-dicom`` and ``deid-review``: clean DICOM files, a sheet to check the rules by eye."""

from __future__ import annotations

from typing import Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

KeyOption = Annotated[
    str, typer.Option("--key-ref", metavar="env:NAME|file:PATH", help="Where the key of new UIDs is.")
]
WorkersOption = Annotated[int, typer.Option(min=1, max=256, help="Processes (more than one: on Ray).")]


def deid_dicom(
    source: Annotated[
        str, typer.Argument(metavar="IN_DIR", help="Folder, file:// or s3:// with DICOM files.")
    ],
    target: Annotated[str, typer.Argument(metavar="OUT_DIR", help="Where clean copies are written.")],
    key_ref: KeyOption = "env:ECHORAY_DEID_KEY",
    num_workers: WorkersOption = 1,
) -> None:
    """Write clean copies of ultrasound DICOM: header, private tags and burned-in text on every frame."""
    from contextlib import ExitStack

    from echoray.cli.console import progress_display
    from echoray.cli.tables import print_ledger_rows
    from echoray.config import load_run, secret
    from echoray.data.deidentify.archive import clean_archive
    from echoray.data.sources.index import ARCHIVE, list_source
    from echoray.errors import UsageError
    from echoray.platform.runtime import ray_session
    from echoray.storage import open_store

    if not key_ref.startswith(("env:", "file:")):
        raise UsageError(
            f"--key-ref {key_ref!r}: expected env:NAME or file:PATH", hint="name the key's place"
        )
    key = secret(key_ref).encode()
    inside, outside = open_store(source), open_store(target)
    if f"{outside.root}/".startswith(f"{inside.root}/") or f"{inside.root}/".startswith(f"{outside.root}/"):
        raise UsageError(
            "IN_DIR and OUT_DIR lie in one another, expected two separate folders",
            hint="name another OUT_DIR",
        )
    files = list_source(inside, ARCHIVE).files
    with ExitStack() as stack:
        if num_workers > 1:
            stack.enter_context(ray_session(load_run("tiny").cluster))
        progress = stack.enter_context(progress_display())
        ledger, _ = clean_archive(files, outside, key, progress, num_workers=num_workers)
    print_ledger_rows([ledger])
    typer.echo(outside.root)


def deid_review(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Local folder for the sheet (mode 0700).")],
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    num_frames: Annotated[int, typer.Option("--num", min=1, max=1000, help="Frames to show.")] = 12,
) -> None:
    """Write a page of sampled frames before and after, with every decision. It shows patient data."""
    from pathlib import Path

    from echoray.cli.console import progress_display, stderr
    from echoray.data.deidentify.review import write_review
    from echoray.errors import UsageError

    if "://" in out:
        raise UsageError(f"--out {out!r}: expected a local folder", hint="the sheet shows patient data")
    run = resolve(config, overrides, workspace)
    with progress_display() as progress:
        page = write_review(run, Path(out), num_frames, progress)
    stderr.print("warning: this page shows patient data; delete it after the review", style="bold red")
    typer.echo(str(page))
