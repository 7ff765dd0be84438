"""Time the search for near-identical frames across splits against comparing all pairs with numpy.

``python -m tests.benchmarks.leak_audit`` draws fingerprints, plants near-identical pairs around the limit
and prints a row per size: seconds of ours, of brute force on the same hashes (up to ``--brute`` of them;
both must find the same pairs), and the ratio. The kinds: ``even`` (every bit a coin), ``scans`` (phantom
frames with every eighth bit turned, which keeps the bits that scans on black share), and, up to
``--brute``, ``dull`` (five of six bits nearly always the same: the worst case, in which bands tell little).
Whole run: two minutes; a quick look: ``--sizes 20000``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from functools import cache, partial

import numpy as np

from echoray.data.fingerprint import NEAR, NUM_BITS, frame_fingerprint
from echoray.data.leaks import crossing
from echoray.data.phantom import synthesize_study

NAMES = ("train", "validation", "test")
DRAWN_AT_ONCE = 1 << 15


def hashes(count: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 72) bytes and as many splits; a thousandth of the frames is close to another one."""
    rng = np.random.default_rng(seed)
    starts = range(0, count, DRAWN_AT_ONCE)
    draw = {"even": coins, "dull": dull, "scans": partial(scans, phantoms())}[kind]
    drawn = np.concatenate(
        [np.packbits(draw(min(DRAWN_AT_ONCE, count - start), rng), axis=1) for start in starts]
    )
    for number in range(max(40, count // 1000)):
        one, other = rng.choice(count, 2, replace=False)
        bits = np.unpackbits(drawn[one])
        bits[rng.choice(NUM_BITS, number % (NEAR + 4), replace=False)] ^= 1
        drawn[other] = np.packbits(bits)
    return drawn, rng.choice(NAMES, count, p=(0.75, 0.05, 0.2))


def coins(count: int, rng: np.random.Generator) -> np.ndarray:
    """Bits that are set half of the time."""
    return rng.random((count, NUM_BITS), np.float32) < 0.5


def dull(count: int, rng: np.random.Generator) -> np.ndarray:
    """Bits of which five of six are set in one of a hundred."""
    share = np.where(np.arange(NUM_BITS) % 6 == 0, 0.5, 0.01)
    return rng.random((count, NUM_BITS), np.float32) < share


def scans(frames_FB: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Bits of a phantom frame each; those that differ between phantoms at all are turned, one of eight."""
    varies = (frames_FB.mean(0) > 0.02) & (frames_FB.mean(0) < 0.98)
    turned = (rng.random((count, NUM_BITS), np.float32) < 0.125) & varies
    return frames_FB[rng.integers(0, len(frames_FB), count)] ^ turned


@cache
def phantoms() -> np.ndarray:
    """Bits of the fingerprints of synthetic frames of all systems."""
    found = [
        frame_fingerprint(
            synthesize_study(index, seed=0, language="en", width=640, height=480).frames[0].pixels
        )
        for index in range(140)
    ]
    return np.unpackbits(np.frombuffer(b"".join(found), np.uint8).reshape(len(found), -1), axis=1) > 0


def brute_force(drawn: np.ndarray, splits: np.ndarray) -> set[tuple[int, int, int]]:
    """All pairs, one row against all rows after it."""
    words, found = drawn.view(np.uint64), set()
    for row in range(len(words)):
        bits = np.bitwise_count(words[row + 1 :] ^ words[row]).sum(1)
        for place in np.flatnonzero((bits <= NEAR) & (splits[row + 1 :] != splits[row])):
            found.add((row, row + 1 + int(place), int(bits[place])))
    return found


def row(count: int, kind: str, brute_limit: int) -> str:
    """Measure one size."""
    drawn, splits = hashes(count, kind, seed=count)
    began = time.perf_counter()
    found = crossing(drawn, splits.tolist())
    ours_s = time.perf_counter() - began
    compared = "-", "-"
    if count <= brute_limit:
        began = time.perf_counter()
        expected = brute_force(drawn, splits)
        brute_s = time.perf_counter() - began
        if {(one.first, one.second, one.distance_bits) for one in found} != expected:
            raise SystemExit(f"{count} hashes: the search and brute force disagree")
        compared = f"{brute_s:.2f} s", f"{brute_s / ours_s:.0f}"
    return " | ".join([kind, f"{count}", f"{len(found)}", f"{ours_s:.2f} s", *compared])


def main() -> None:
    """Print the machine and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--brute", type=int, default=20_000, help="largest size to compare by brute force")
    args = parser.parse_args()
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, one used, numpy "
        f"{np.__version__}; {NUM_BITS} bits, distance {NEAR}\n"
    )
    print("| hashes | frames | pairs found | search | brute force | ratio |\n|---|---|---|---|---|---|")
    for count in args.sizes:
        for kind in ("even", "scans", "dull") if count <= args.brute else ("even", "scans"):
            print(f"| {row(count, kind, args.brute)} |", flush=True)


if __name__ == "__main__":
    main()
