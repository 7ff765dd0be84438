"""Run the demo in a fresh workspace and print its wall time and peak memory.

``python -m tests.benchmarks.demo_resources [arguments of echoray demo]``. Memory is the proportional set size
(PSS) summed over the command and everything it started, sampled twice a second, so that pages shared between
processes count once.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time

import psutil

EVERY_S = 0.5


def pss_bytes(root: psutil.Process) -> int:
    """PSS of a process and of its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return total


def main() -> int:
    """Print the figures; the demo's exit code."""
    with tempfile.TemporaryDirectory(prefix="echoray-benchmark-") as workspace:
        command = [sys.executable, "-m", "echoray", "demo", "--workspace", workspace, *sys.argv[1:]]
        began, peak = time.monotonic(), 0
        process = psutil.Popen(command, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                peak = max(peak, pss_bytes(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(EVERY_S)
        code = int(process.wait())
        wall_s = time.monotonic() - began
    print(f"machine: {platform.processor() or platform.machine()}, {psutil.cpu_count()} cores")
    print(f"wall time {wall_s:.0f} s, peak memory {peak / 2**30:.2f} GiB, exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
