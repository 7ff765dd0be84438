"""Errors become messages and exit codes, however deep a library has wrapped them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from echoray.config import load_run
from echoray.errors import ConfigError, StorageError
from echoray.platform.failures import INTERRUPTED, ending_of, terminated_like_interrupted
from echoray.platform.pipeline import Pipeline
from echoray.storage import open_store

FULL = OSError(errno.ENOSPC, "No space left on device")
MISTAKE = ConfigError("wrong value", hint="correct it")


def chained(error: Exception, *, by_cause: bool) -> Exception:
    try:
        try:
            raise error
        except Exception as inner:
            if by_cause:
                raise RuntimeError("a library's wrapper") from inner
            raise RuntimeError("raised while handling") from None
    except RuntimeError as outer:
        return outer


def from_a_worker(error: Exception) -> Exception:
    return RayTaskError("task", "Traceback ...", error).as_instanceof_cause()


def from_ray_train(error: Exception) -> Exception:
    failed = RuntimeError("training failed")
    failed.worker_failures = {1: RuntimeError("lost"), 2: from_a_worker(error)}  # type: ignore[attr-defined]
    return failed


WRAPPERS: list[Callable[[Exception], Exception]] = [
    lambda error: error,
    lambda error: chained(error, by_cause=True),
    lambda error: chained(error, by_cause=False),
    from_a_worker,
    from_ray_train,
    lambda error: chained(from_ray_train(chained(error, by_cause=True)), by_cause=True),
]


@pytest.mark.parametrize("wrapped", WRAPPERS)
def test_a_mistake_and_a_full_disk_are_found_below_any_wrapper(
    wrapped: Callable[[Exception], Exception],
) -> None:
    ending = ending_of(wrapped(MISTAKE))
    assert ending is not None
    assert (ending.message, ending.hint, ending.exit_code) == ("wrong value", "correct it", 2)
    ending = ending_of(wrapped(FULL))
    assert ending is not None
    assert ("no space left" in ending.message, ending.exit_code) == (True, StorageError.exit_code)


@pytest.mark.parametrize("wrapped", WRAPPERS)
def test_a_defect_has_no_ending_so_that_its_traceback_is_seen(
    wrapped: Callable[[Exception], Exception],
) -> None:
    assert ending_of(wrapped(KeyError("defect"))) is None
    assert ending_of(wrapped(OSError(errno.ENOENT, "defect"))) is None


def test_sigterm_ends_a_block_like_ctrl_c_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as stopped, terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert ending_of(stopped.value) is INTERRUPTED
    assert INTERRUPTED.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_that_a_finalizer_swallows_comes_again(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Slow:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        one = Slow()
        del one
        time.sleep(10)
    assert "ignored" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_step_goes_on_after_an_interrupt_that_was_swallowed(number: int, tmp_path: Path) -> None:
    reported: list[int] = []
    steps = Pipeline(load_run("tiny"), open_store(str(tmp_path)), lambda _, done, __: reported.append(done))
    report = steps.progress
    report("a step", 1, 2)
    with terminated_like_interrupted():
        report("a step", 2, 3)
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        for going_on in (lambda: steps.progress, lambda: report("a step", 3, 3)):
            with pytest.raises(KeyboardInterrupt):
                going_on()
    with terminated_like_interrupted():
        report("another run", 4, 4)
    assert reported == [1, 2, 4]
