"""How a command or a job ends: the error a user can act on, found inside Ray's wrappers, and SIGTERM."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echoray.errors import EchoRayError, StorageError

if TYPE_CHECKING:
    from types import FrameType


@dataclass(frozen=True)
class Ending:
    """What to say and the exit code to leave with."""

    message: str
    hint: str
    exit_code: int


INTERRUPTED = Ending("interrupted", "run the same command again: finished steps are reused", 130)


def ending_of(error: BaseException) -> Ending | None:
    """How a process that ``error`` stops should end; None for a defect, whose traceback is to be seen."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    cause = known_cause(error)
    return Ending(cause.message, cause.hint, cause.exit_code) if cause is not None else None


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C inside the block, so that Ray and the workspace lock are always released."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def known_cause(error: BaseException) -> EchoRayError | None:
    """The EchoRayError below Ray's task, train and user-code wrappers; None when the failure is a defect.

    A full disk reported by any library becomes a StorageError.
    """
    for one in _chain(error):
        if isinstance(one, EchoRayError) and type(one).__module__ == EchoRayError.__module__:
            return one
        if isinstance(one, OSError) and one.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StorageError("no space left on the disk", hint="free space and run the same command again")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        one = todo.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        workers = getattr(one, "worker_failures", None)
        todo += [getattr(one, "cause", None), one.__cause__, one.__context__]
        todo += list(workers.values()) if isinstance(workers, dict) else []
