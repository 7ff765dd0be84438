"""The decisions of deduplication are those of comparing each text, in order, with all that were kept."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoray.config.dedup import DedupConfig
from echoray.data.dedup import Decision, Deduplicator
from echoray.data.dedup.fingerprints import fingerprints, tokenize
from echoray.storage import open_store
from tests.public_text import PUBLIC_TEXT, needs_public_text

WORDS = st.text(alphabet="abcde", min_size=1, max_size=1)
TEXTS = st.lists(st.lists(WORDS, max_size=80).map(" ".join), max_size=12)


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for token in one:
        above = row
        row = [0]
        for place, candidate in enumerate(other):
            row.append(above[place] + 1 if token == candidate else max(above[place + 1], row[place]))
    return row[-1]


def by_brute_force(texts: Sequence[str], config: DedupConfig) -> list[Decision]:
    threshold, distance = Fraction(str(config.rouge_l)), config.simhash_distance
    tokens, hashes = [tokenize(one) for one in texts], fingerprints(texts).simhash_B.tolist()
    decisions: list[Decision] = []
    kept: list[int] = []
    for number, mine in enumerate(tokens):
        found = Decision()
        for other in kept:
            total = len(mine) + len(tokens[other])
            common = longest_common_subsequence(mine, tokens[other])
            if total and Fraction(2 * common, total) > threshold:
                found = Decision(other, "rouge_l")
            elif (hashes[number] ^ hashes[other]).bit_count() <= distance:
                found = Decision(other, "simhash")
            if not found.kept:
                break
        if found.kept:
            kept.append(number)
        decisions.append(found)
    return decisions


def shuffled(text: str, share: float, rng: random.Random) -> str:
    """The text with a share of its tokens replaced by others of it, and its sentences in another order."""
    letters = list(text)
    for _ in range(round(share * len(letters))):
        letters[rng.randrange(len(letters))] = rng.choice(text)
    parts = re.split("(?<=。)", "".join(letters))
    return "".join(rng.sample(parts, len(parts)) if rng.random() < 0.3 else parts)


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, changes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12))
@pytest.mark.parametrize("rouge_l", [0.7, 0.5, 1])
@pytest.mark.parametrize("distance", [-1, 3, 7])
def test_random_texts_and_variants_of_them(
    rouge_l: float, distance: int, texts: list[str], changes: list[tuple[int, int]]
) -> None:
    rng = random.Random(0)
    for which, share in changes:
        if texts and texts[which % len(texts)]:
            texts.append(shuffled(texts[which % len(texts)], share / 100, rng))
    config = DedupConfig(rouge_l=rouge_l, simhash_distance=distance)
    assert list(Deduplicator(config).add(texts)) == by_brute_force(texts, config)


def public_texts(count: int, rng: random.Random) -> list[str]:
    rows = [row for path in sorted(PUBLIC_TEXT.glob("*.json")) for row in json.loads(path.read_text())]
    return [one["conversations"][-1]["value"] for one in rng.sample(rows, count)]


@needs_public_text
def test_real_reports_and_variants_of_them_around_the_threshold() -> None:
    rng = random.Random(4)
    texts = public_texts(150, rng)
    texts += [shuffled(rng.choice(texts), rng.uniform(0.05, 0.4), rng) for _ in range(150)]
    rng.shuffle(texts)
    decisions = list(Deduplicator().add(texts))
    assert decisions == by_brute_force(texts, DedupConfig())
    assert 50 < sum(one.kept for one in decisions) < 250


def test_a_saved_index_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(0, 150))) for _ in range(120)]
    texts += [shuffled(one, 0.1, rng) for one in texts if one]
    whole = list(Deduplicator().add(texts))
    store, parts = open_store(str(tmp_path)), list[Decision]()
    engine = Deduplicator()
    for start in range(0, len(texts), 50):
        parts += engine.add(texts[start : start + 50])
        engine.save(store, "index.parquet")
        again = store.read_bytes("index.parquet")
        engine = Deduplicator.load(store, "index.parquet")
        engine.save(store, "index.parquet")
        assert store.read_bytes("index.parquet") == again
    assert parts == whole and engine.num_kept == sum(one.kept for one in whole)


def test_what_is_dropped_leaves_nothing_behind(tmp_path: Path) -> None:
    store, engine = open_store(str(tmp_path)), Deduplicator()
    sizes = []
    for round_number in range(3):
        list(engine.add([f"{'the liver is smooth ' * 20} {round_number} {number}" for number in range(300)]))
        engine.save(store, "index.parquet")
        sizes.append(store.size("index.parquet"))
    assert engine.num_kept == 1 and engine.num_seen == 900
    assert max(sizes) - min(sizes) < 16


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("BI-RADS 4a, 2.5×1.3 cm.", ["bi", "rads", "4", "a", "2.5", "1.3", "cm"]),
        ("低回声结节 TI-RADS", [*"低回声结节", "ti", "rads"]),
        ("ＣＤＦＩ：１２mm", ["cdfi", "12", "mm"]),
        ("、。!? ", []),
    ],
)
def test_words_are_whole_and_chinese_is_read_by_character(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_a_score_of_exactly_the_threshold_is_kept() -> None:
    config = DedupConfig(simhash_distance=-1)
    ten, seven_of_ten = "a b c d e f g h i j", "a b c d e f g x y z"
    assert [one.kept for one in Deduplicator(config).add([ten, seven_of_ten])] == [True, True]
    eight_of_ten = "a b c d e f g h y z"
    assert [one.kept for one in Deduplicator(config).add([ten, eight_of_ten])] == [True, False]
