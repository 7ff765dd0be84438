"""Finding the error that a user can act on inside the wrappers that Ray puts around it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from echoray.errors import EchoRayError, StorageError


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
