"""How a command or a job ends: the error a user can act on, found inside Ray's wrappers, and SIGTERM."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echoray.errors import EchoRayError, StorageError

if TYPE_CHECKING:
    from types import FrameType

_AGAIN_S = 0.1
_asked = threading.Event()  # whether this process was interrupted


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
    """Treat SIGTERM as Ctrl-C inside the block, so that Ray and the workspace lock are always released.

    An interrupt that comes while a finalizer runs (Ray Data has some that take long) is printed and forgotten
    by Python; here it comes again. For one that a library swallows, as imports do that try what is installed,
    there is ``stop_where_asked``.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        _asked.set()
        raise KeyboardInterrupt

    def not_forgotten(ignored: sys.UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            again = threading.Timer(_AGAIN_S, _interrupt_main_thread)
            again.daemon = True
            again.start()
        else:
            hook(ignored)

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    hook, sys.unraisablehook = sys.unraisablehook, not_forgotten
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _asked.clear()


def stop_where_asked() -> None:
    """Raise KeyboardInterrupt where one was raised before and swallowed; in the main thread only."""
    if _asked.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def _interrupt_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


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
