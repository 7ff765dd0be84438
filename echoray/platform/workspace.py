"""A run's workspace: the store, one writer at a time, and room to write."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from echoray.config import RunConfig
from echoray.errors import BusyError, StorageError, UsageError
from echoray.storage import Store, store_of

MIN_FREE_BYTES = 1 << 30
_LOCK = ".lock"


@contextmanager
def locked_workspace(run: RunConfig) -> Iterator[Store]:
    """Hold the workspace for this process and check that there is room to write.

    On file:// a second process gets BusyError at once; the operating system frees the lock when the
    holder dies. Object stores have no lock: two runs of one configuration at once end with the artifact that
    was sealed first, or with an error that says to run again (DECISIONS.md, 4).
    Raises StorageError where the folder cannot be made or less than 1 GiB is free, UsageError where the lock
    is another user's.
    """
    store = store_of(run)
    folder = store.local()
    if folder is None:
        yield store
        return
    _make(folder)
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"{store.root}: {free / 1e9:.2f} GB free, expected at least {MIN_FREE_BYTES / 1e9:.2f} GB",
            hint="free space, or name another folder with --workspace",
        )
    with _open_lock(folder) as handle:
        _take(handle, store.root)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield store


def _open_lock(folder: Path) -> TextIO:
    try:
        return (folder / _LOCK).open("a+")
    except OSError as error:  # in a folder that many may write to: another user's
        raise UsageError(
            f"cannot open {folder / _LOCK}: {error.strerror}",
            hint="is the workspace another user's? name a folder of your own with --workspace",
        ) from None


def _take(handle: TextIO, root: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        raise BusyError(
            f"{root}: in use by process {holder}",
            hint="wait until it ends, or name another folder with --workspace",
        ) from None
    except OSError as error:
        raise StorageError(
            f"{root}: cannot be locked: {error.strerror}",
            hint="name a folder on a file system with locks with --workspace",
        ) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write to workspace {folder}: {error.strerror}",
            hint="name another folder with --workspace",
        ) from None
