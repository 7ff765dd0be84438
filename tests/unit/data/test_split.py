"""The split: by patient alone, in the configured shares, and an audit that sees what breaks it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoray.config.data import SplitConfig
from echoray.data.split import leaked_patients, split_of
from echoray.types import SPLITS

NUM_PATIENTS = 20_000


def splits(config: SplitConfig, seed: int = 7, num: int = NUM_PATIENTS) -> list[str]:
    return [split_of(f"patient {index}", config, seed=seed) for index in range(num)]


@pytest.mark.parametrize("shares", [(0.75, 0.05, 0.2), (0.5, 0.0, 0.5), (0.98, 0.01, 0.01)])
def test_the_shares_are_those_configured(shares: tuple[float, float, float]) -> None:
    config = SplitConfig(**dict(zip(SPLITS, shares, strict=True)))
    counts = Counter(splits(config))
    for split, share in zip(SPLITS, shares, strict=True):
        five_sigma = 5 * (share * (1 - share) / NUM_PATIENTS) ** 0.5
        assert counts[split] / NUM_PATIENTS == pytest.approx(share, abs=five_sigma)


def test_a_patient_stays_where_an_earlier_version_put_it() -> None:
    # Other values here mean that test patients of earlier models are trained on.
    found = [split_of(f"{index:064x}", SplitConfig(), seed=7) for index in range(64)]
    assert [index for index, split in enumerate(found) if split == "test"][:9] == [
        1,
        2,
        4,
        7,
        8,
        13,
        17,
        18,
        21,
    ]
    assert [index for index, split in enumerate(found) if split == "validation"] == [50, 51, 54]


def test_more_training_data_moves_patients_into_training_only() -> None:
    less = splits(SplitConfig(train=0.6, validation=0.2, test=0.2), num=2000)
    more = splits(SplitConfig(train=0.7, validation=0.1, test=0.2), num=2000)
    moved = {(before, after) for before, after in zip(less, more, strict=True) if before != after}
    assert moved == {("validation", "train")}


def test_another_seed_is_another_split() -> None:
    config = SplitConfig(train=0.5, validation=0.0, test=0.5)
    same = sum(a == b for a, b in zip(splits(config, 1), splits(config, 2), strict=True))
    assert same / NUM_PATIENTS == pytest.approx(0.5, abs=0.02)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(SPLITS))))
def test_the_audit_finds_exactly_the_patients_in_two_splits(rows: list[tuple[str, str]]) -> None:
    leaked = [key for key in "abcdef" if len(set(rows) & {(key, split) for split in SPLITS}) > 1]
    assert leaked_patients(rows) == leaked
    assert leaked_patients([*rows, ("g", "train"), ("g", "test")]) == [*leaked, "g"]
