"""Patient-keyed split: a function of the patient alone, so growing archives never move a patient."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from echoray.config.data import SplitConfig
from echoray.types import Split

_BITS = 64


def split_of(patient_key: str, config: SplitConfig, *, seed: int) -> Split:
    """Train, validation or test, by a uniform hash of (seed, patient key)."""
    digest = hashlib.sha256(f"{seed}:{patient_key}".encode()).digest()
    place = int.from_bytes(digest[: _BITS // 8], "big") / 2**_BITS
    if place < config.train:
        return "train"
    return "validation" if place < config.train + config.validation else "test"


def leaked_patients(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Patient keys in more than one split, from (patient_key, split) pairs; none is the only good answer."""
    splits: dict[str, set[str]] = defaultdict(set)
    for patient_key, split in rows:
        splits[patient_key].add(split)
    return sorted(key for key, found in splits.items() if len(found) > 1)
