"""The leak audit: no patient and no near-identical frame in two of train, validation and test.

Legend: N frames, B bytes of a fingerprint, K bands of bits.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoray import artifacts
from echoray.artifacts import Manifest
from echoray.config import digest
from echoray.data.fingerprint import KIND, NEAR
from echoray.data.split import leaked_patients
from echoray.errors import ArtifactError
from echoray.storage import Store
from echoray.types import SPLITS, ArtifactRef, Rejection

AUDIT_FILE = "audit.json"
AUDIT_SCHEMA = 1
AUDIT_STEP = "audit"
REASON = "near_identical_across_splits"
_AGAIN = "run `echoray data prepare` and `echoray data tokenize` again"
_ROWS_AT_ONCE = 1 << 16
_PAIRS_AT_ONCE = 1 << 20
_WORD_BITS = 64


@dataclass(frozen=True, order=True, slots=True)
class Crossing:
    """Two near-identical frames in different splits, by their positions; ``first`` < ``second``."""

    first: int
    second: int
    distance_bits: int


@dataclass(frozen=True)
class Audit:
    """Which studies have to go, as rejections, and what was counted before and after."""

    rejections: tuple[Rejection, ...]
    counts: Mapping[str, int]

    @property
    def dropped(self) -> frozenset[str]:
        """Hashes of the studies that have to go."""
        return frozenset(one.record for one in self.rejections)


def crossing(hashes_NB: NDArray[np.uint8], splits: Sequence[str], max_distance: int = NEAR) -> list[Crossing]:
    """All pairs of frames in different splits whose fingerprints differ in at most ``max_distance`` bits.

    Exact: of ``max_distance`` + 1 bands of bits at least one is the same in both, so only pairs that share a
    band are compared. Raises ValueError where there are fewer bits than bands.
    """
    count, num_bytes = hashes_NB.shape
    if len(splits) != count or max_distance + 1 > 8 * num_bytes:
        raise ValueError(
            f"{count} hashes of {8 * num_bytes} bits, {len(splits)} splits, distance {max_distance}: "
            "expected a split for each hash and a distance below the number of bits"
        )
    _, split_N = np.unique(np.asarray(splits, dtype=str), return_inverse=True)
    if len(np.unique(split_N)) < 2:
        return []
    words_NW = _words(hashes_NB)
    found = [np.zeros((0, 2), np.intp)]
    for key_N in _bands(hashes_NB, max_distance + 1):
        for pair_P2 in _pairs(key_N, split_N):
            found.append(pair_P2[_distances(words_NW, pair_P2) <= max_distance])
    # A pair that shares several bands was found several times.
    pair_P2 = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    bits_P = _distances(words_NW, pair_P2)
    rows = zip(pair_P2.tolist(), bits_P.tolist(), strict=True)
    return [Crossing(first, second, bits) for (first, second), bits in rows]


def studies_to_drop(
    crossings: Iterable[Crossing], studies: Sequence[Collection[str]], splits: Sequence[str]
) -> frozenset[str]:
    """Studies to drop, so that no crossing is left; test is kept before validation, validation before train.

    ``studies`` are those that show the picture of each position. A validation study that goes because of a
    test study takes no train study with it.
    """
    rank: dict[str, int] = {split: place for place, split in enumerate(SPLITS)}
    edges = [
        sorted((one.first, one.second), key=lambda place: rank[splits[place]], reverse=True)
        for one in crossings
    ]
    dropped: set[str] = set()
    for higher, lower in sorted(edges, key=lambda edge: rank[splits[edge[0]]], reverse=True):
        if not dropped.issuperset(studies[higher]):
            dropped.update(studies[lower])
    return frozenset(dropped)


def audit_studies(rows: Iterable[Mapping[str, Any]]) -> Audit:
    """Audit studies by their ``study_hash``, ``patient_key``, ``split`` and ``fingerprints`` (one per frame).

    The result does not depend on the order of the rows.
    """
    ordered = sorted(rows, key=lambda row: str(row["study_hash"]))
    found, dropped = _search(ordered)
    kept = [row for row in ordered if row["study_hash"] not in dropped]
    counts = {
        "studies": len(kept),
        "frames": sum(len(row["fingerprints"]) for row in kept),
        "patients": len({row["patient_key"] for row in kept}),
        "crossings_found": len(found),
        "studies_dropped": len(dropped),
        "patients_crossing": len(leaked_patients((row["patient_key"], row["split"]) for row in kept)),
        "frames_crossing": len(_search(kept)[0]) if dropped else len(found),
    }
    return Audit(tuple(Rejection(one, AUDIT_STEP, REASON) for one in sorted(dropped)), counts)


def audit_record(audit: Audit, files: Mapping[str, str]) -> dict[str, Any]:
    """What ``audit.json`` holds; ``files`` maps the artifact's Parquet parts to their sha256."""
    return {
        "schema_version": AUDIT_SCHEMA,
        "hash": KIND,
        "max_distance_bits": NEAR,
        "counts": dict(audit.counts),
        "inputs": _inputs(files),
    }


def read_audit(store: Store, studies: ArtifactRef) -> dict[str, Any]:
    """The checked audit of a studies artifact; ArtifactError where it is missing, failed or of other data."""
    where = store.uri(studies.path)
    manifest = artifacts.require(store, studies, made_by="echoray data prepare")
    if AUDIT_FILE not in manifest.files:
        raise ArtifactError(f"{where}: no leak audit ({AUDIT_FILE} is missing)", hint=_AGAIN)
    try:
        audit = json.loads(store.read_bytes(f"{studies.path}/{AUDIT_FILE}"))
    except ValueError:
        raise ArtifactError(f"{where}/{AUDIT_FILE}: not JSON", hint=_AGAIN) from None
    check_audit(audit, manifest.files, where=where)
    return dict(audit)


def require_audit(store: Store, shards: Manifest) -> None:
    """Refuse tokenized shards unless the audit of the studies that they were made of passed."""
    studies = [parent for parent in shards.parents if parent.kind == "studies"]
    if not studies:
        raise ArtifactError(
            f"{store.uri(shards.ref.path)}: names no studies, so no leak audit vouches for it", hint=_AGAIN
        )
    for one in studies:
        read_audit(store, one)


def check_audit(audit: Any, files: Mapping[str, str], *, where: str) -> None:
    """Refuse an audit that did not pass or is not of ``files``, those of the artifact at ``where``."""
    expected = {
        "schema_version": AUDIT_SCHEMA,
        "hash": KIND,
        "max_distance_bits": NEAR,
        "inputs": _inputs(files),
    }
    got = audit if isinstance(audit, dict) else {}
    for name, value in expected.items():
        if got.get(name) != value:
            raise ArtifactError(
                f"{where}: the leak audit's {name} is {got.get(name)!r}, expected {value!r}", hint=_AGAIN
            )
    counts = got.get("counts")
    for name in ("patients_crossing", "frames_crossing"):
        number = counts.get(name) if isinstance(counts, dict) else None
        if number != 0:
            raise ArtifactError(
                f"{where}: the leak audit failed: {name} is {number}, expected 0",
                hint="do not train on it: evaluation would be of data that was trained on; " + _AGAIN,
            )


def _inputs(files: Mapping[str, str]) -> str:
    """A digest of the Parquet parts that hold the studies."""
    return digest(sorted((name, sha) for name, sha in files.items() if "part-" in name))


def _search(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Crossing], frozenset[str]]:
    """The crossings of some studies' pictures, and the studies to drop.

    A picture that many studies of a split show counts once: its pairs would grow with their square.
    """
    shown: dict[tuple[bytes, str], set[str]] = defaultdict(set)
    for row in rows:
        for one in row["fingerprints"]:
            shown[bytes(one), str(row["split"])].add(str(row["study_hash"]))
    if not shown:
        return [], frozenset()
    hashes, splits = zip(*shown, strict=True)
    hashes_NB = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    found = crossing(hashes_NB, splits)
    return found, studies_to_drop(found, list(shown.values()), splits)


def _distances(words_NW: NDArray[np.uint64], pair_P2: NDArray[np.intp]) -> NDArray[np.int64]:
    """The Hamming distance of each pair."""
    first_PW, second_PW = words_NW[pair_P2[:, 0]], words_NW[pair_P2[:, 1]]
    return np.bitwise_count(first_PW ^ second_PW).sum(1, dtype=np.int64)


def _words(hashes_NB: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The hashes as rows of 64-bit words, padded with zeros."""
    padding = -hashes_NB.shape[1] % 8
    return np.ascontiguousarray(np.pad(hashes_NB, ((0, 0), (0, padding)))).view(np.uint64)


def _bands(hashes_NB: NDArray[np.uint8], num_bands: int) -> Iterator[NDArray[np.uint64]]:
    """K keys for each hash, (N,) at a time: all bits dealt out, so that no band has only dull ones.

    Bits that are nearly always the same (the black corners of a sector) would make a band that everybody
    shares; what does not fit a word is left out, which only adds pairs to compare.
    """
    count, num_bits = len(hashes_NB), 8 * hashes_NB.shape[1]
    sample_SB = hashes_NB[:: max(1, count // _ROWS_AT_ONCE)]
    dullness = np.abs(np.unpackbits(sample_SB, axis=1).mean(0) - 0.5)
    order = np.argsort(dullness, kind="stable")
    for band in range(num_bands):
        places = order[band:num_bits:num_bands][:_WORD_BITS]
        key_N = np.zeros(count, np.uint64)
        for place in places:
            bit_N = (hashes_NB[:, place >> 3] >> np.uint8(7 - (place & 7))) & np.uint8(1)
            key_N = (key_N << np.uint64(1)) | bit_N
        yield key_N


def _pairs(key_N: NDArray[np.uint64], split_N: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Positions (P, 2) of all pairs with the same key and different splits, some at a time."""
    order_N = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order_N]
    last = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))
    end_N = np.repeat(last + 1, np.diff(last, prepend=-1))
    at, step = np.arange(len(order_N)), 0
    while len(at):
        step += 1
        at = at[at + step < end_N[at]]
        for start in range(0, len(at), _PAIRS_AT_ONCE):
            chunk = at[start : start + _PAIRS_AT_ONCE]
            pair_P2 = np.stack([order_N[chunk], order_N[chunk + step]], axis=1)
            yield pair_P2[split_N[pair_P2[:, 0]] != split_N[pair_P2[:, 1]]]
