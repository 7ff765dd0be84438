"""A run's workspace: the store, one writer at a time, and room to write."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echoray.config import RunConfig
from echoray.errors import BusyError, StorageError
from echoray.storage import Store, store_of

MIN_FREE_BYTES = 1 << 30
_LOCK = ".lock"


@contextmanager
def locked_workspace(run: RunConfig) -> Iterator[Store]:
    """Hold the workspace for this process and check that there is room to write.

    On file:// a second process gets BusyError at once; the operating system frees the lock when the
    holder dies. Object stores need no lock: artifacts are sealed with a conditional put, so that two
    runs of the same configuration both end with the first one's artifact.
    Raises StorageError where the folder cannot be made or less than 1 GiB is free.
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
    with (folder / _LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise BusyError(
                f"{store.root}: in use by process {holder}",
                hint="wait until it ends, or name another folder with --workspace",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield store


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
