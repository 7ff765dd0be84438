"""A file system of a few kilobytes, for what happens when a disk is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str, *, in_use: bool = False) -> Iterator[None]:
    """Mount one of ``size`` (as tmpfs takes it) at ``folder``, or skip the test where that is not allowed.

    Fails where something still uses it at the end, unless it may be ``in_use``.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", *(["--lazy"] if in_use else []), str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    """Give the mounted file system another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
