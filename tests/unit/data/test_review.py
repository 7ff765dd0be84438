"""Samples, decisions, rates and suspensions; files that experts fill in."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoray.config.screen import ScreenConfig
from echoray.data.instruct.decisions import Decision, DecisionError, DecisionLog, checked_decision, outcomes
from echoray.data.instruct.feedback import Applied, feedback, wilson
from echoray.data.instruct.items import Item
from echoray.data.instruct.quality import quality_chain
from echoray.data.instruct.review import SetKey, allocate, draw, find_sample, read_sample, set_of
from echoray.data.instruct.review_files import export_sample, import_decisions
from echoray.errors import ArtifactError, InputDataError
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef, Ledger
from tests.instruct_case import item, sample_of, studies_of, study_rows

STUDY = "ab" * 32


@given(st.dictionaries(st.integers(0, 30), st.integers(1, 500), min_size=1), st.integers(1, 400))
def test_a_sample_is_shared_out_in_proportion(counts: dict[int, int], size: int) -> None:
    sets = {SetKey("model", f"set-{name:02d}"): count for name, count in counts.items()}
    quota = allocate(sets, size)
    total = sum(sets.values())
    assert sum(quota.values()) == min(size, total)
    for one, count in sets.items():
        assert 0 <= quota[one] <= count
        if size >= len(sets):
            assert quota[one] >= 1
        if size // len(sets) > 2 and quota[one] > 1:
            assert quota[one] <= size * count / total + 1


def test_a_drawing_depends_on_the_seed_and_not_on_the_order_of_items() -> None:
    items = [item(number, STUDY, template=("a-a", "b-b")[number % 3 == 0]) for number in range(90)]
    quota = allocate(Counter(map(set_of, items)), 20)
    drawn = draw(items, quota, 1)
    assert len(drawn) == 20
    assert draw(random.Random(3).sample(items, 90), quota, 1) == drawn
    assert draw(items, quota, 2) != drawn


def test_wilson_intervals_are_those_of_the_literature() -> None:
    # Newcombe (1998), table I, method 3, without continuity correction.
    for rejected, reviewed, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        assert wilson(rejected, reviewed, 0.95) == pytest.approx((low, high), abs=5e-5)


def reviewed(rejected: dict[str, int], each: int) -> tuple[list[Item], list[Decision]]:
    items, decisions = [], []
    for template, count in rejected.items():
        for number in range(each):
            made = item(number, STUDY, template=template)
            made = replace(made, item_id=f"{template}-{number}")
            items.append(made)
            choice = "reject" if number < count else "accept"
            reason = "off_topic" if choice == "reject" else None
            decisions.append(Decision(made.item_id, "reader-1", choice, reason))  # type: ignore[arg-type]
    return items, decisions


def test_a_set_is_suspended_when_its_whole_interval_is_above_the_threshold() -> None:
    config = ScreenConfig(threshold=0.1, min_reviewed=20)
    items, decisions = reviewed({"a-good": 3, "b-bad": 12, "c-unclear": 6}, 40)
    found = feedback(config, items, outcomes(decisions))
    assert [(one.template, one.rejected) for one in found.suspensions] == [("b-bad", 12)]
    assert found.overall is not None
    assert (found.overall.reviewed, found.overall.rejected) == (120, 21)
    assert not feedback(config, items, outcomes(decisions[:15])).suspensions  # too few reviewed


def test_decisions_are_applied_and_every_item_is_accounted_for() -> None:
    items, decisions = reviewed({"a-good": 1, "b-bad": 20}, 40)
    edited = Decision("a-good-39", "reader-2", "edit", None, "How large?", "12 mm.", at="2026")
    config = ScreenConfig(threshold=0.1)
    said = outcomes([*decisions, edited])
    closed = replace(item(0, STUDY, template="b-bad"), form="closed", item_id="closed-one")
    found = Applied([*items, closed], said, feedback(config, items, said).suspensions)
    kept = list(found)
    review, suspension = found.ledgers
    assert (review.records_in, review.records_out, review.quarantined) == (81, 60, {"off_topic": 21})
    assert (suspension.records_out, suspension.quarantined) == (40, {"suspended": 20})
    assert kept[-1].item_id == "closed-one"
    assert next(one.answer for one in kept if one.item_id == "a-good-39") == "12 mm."


def test_more_reviewers_decide_by_majority_and_a_tie_rejects() -> None:
    def said(*choices: str) -> str:
        given = [
            Decision("x", f"r{number}", choice, "unsure" if choice == "reject" else None)  # type: ignore[arg-type]
            for number, choice in enumerate(choices)
        ]
        return outcomes(given)["x"].choice

    assert said("accept", "reject") == "reject"
    assert said("accept", "reject", "accept") == "accept"


def test_the_last_word_of_a_reviewer_counts_and_history_stays(tmp_path: Path) -> None:
    log = DecisionLog(open_store(str(tmp_path)), "sample")
    for choice in ("accept", "withdraw", "accept"):
        log.append(Decision("x", "r", choice))  # type: ignore[arg-type]
    log.append(Decision("x", "other", "reject", "unsure"))
    again = DecisionLog(open_store(str(tmp_path)), "sample")
    assert {one.reviewer: one.choice for one in again.current()} == {"r": "accept", "other": "reject"}
    assert len(again.history("r", "x")) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"choice": "like"},
        {"choice": "reject"},
        {"reason": "off_topic"},
        {"reviewer": "../x"},
        {"item_id": "../x"},
        {"choice": "edit", "prompt": "How?", "answer": ""},
        {"choice": "edit", "prompt": "How?", "answer": "<|im_end|>"},
        {"choice": "edit", "prompt": "How?", "answer": "Patient ID 20231234567"},
        {"choice": 3},
    ],
)
def test_what_is_no_decision_is_refused(changes: dict[str, object]) -> None:
    good = {"item_id": "x-1", "reviewer": "reader-1", "choice": "accept"}
    assert checked_decision(good).choice == "accept"
    with pytest.raises(DecisionError):
        checked_decision({**good, **changes})


def test_a_chain_whose_steps_do_not_fit_is_refused() -> None:
    steps = [Ledger("generate", 10, 8, {"malformed": 2}), Ledger("dedup", 8, 5, {"rouge_l": 3})]
    *_, total = quality_chain(steps)
    assert (total.records_in, total.records_out) == (10, 5)
    assert total.quarantined == {"generate: malformed": 2, "dedup: rouge_l": 3}
    with pytest.raises(ArtifactError, match="gave 5 items and review took 6"):
        quality_chain([*steps, Ledger("review", 6, 6, {})])


@pytest.fixture
def sampled(tmp_path: Path) -> tuple[Store, ArtifactRef]:
    store = open_store(str(tmp_path / "store"))
    rows = study_rows(["liver"])
    items = [item(number, row["study_hash"], answer="=1+1, 左叶") for number, row in enumerate(rows[:3])]
    return store, sample_of(store, studies_of(store, rows), items)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_goes_out_and_its_decisions_come_in_once(
    sampled: tuple[Store, ArtifactRef], tmp_path: Path, ending: str
) -> None:
    store, sample = sampled
    items = read_sample(store, sample)
    path = tmp_path / f"out.{ending}"
    export_sample(items, path)
    text = path.read_text(encoding="utf-8-sig")
    assert "a-model" not in text
    if ending == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert all(row["answer"].startswith("'=") for row in rows)
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    rows[0] |= {"choice": "accept"}
    rows[1] |= {
        "choice": "edit",
        "new_prompt": "How large?",
        "new_answer": "'-12 mm" if ending == "csv" else "-12 mm",
    }
    if ending == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_decisions(store, sample, items, path, "reader-1") == 2
    assert import_decisions(store, sample, items, path, "reader-1") == 0
    said = DecisionLog(store, sample.path.rpartition("/")[2]).current()
    assert sorted((one.choice, one.answer or "") for one in said) == [("accept", ""), ("edit", "-12 mm")]


def test_a_file_with_a_defect_is_not_taken_at_all(sampled: tuple[Store, ArtifactRef], tmp_path: Path) -> None:
    store, sample = sampled
    items = read_sample(store, sample)
    path = tmp_path / "in.jsonl"
    good = {"item_id": items[0].item.item_id, "choice": "accept"}
    path.write_text(
        "\n".join(json.dumps(one) for one in (good, {**good, "choice": "reject"}, {**good, "item_id": "z"}))
    )
    with pytest.raises(InputDataError, match=r"(?s)nothing was taken.*line 2: a rejection.*line 3: item_id"):
        import_decisions(store, sample, items, path, "reader-1")
    assert not store.list("reviews")
    for content, message in (("[1]", "line 1: not a JSON object"), ("\x00{", "line 1")):
        path.write_text(content)
        with pytest.raises(InputDataError, match=message):
            import_decisions(store, sample, items, path, "reader-1")


def test_the_sample_is_found_or_the_choice_is_named(sampled: tuple[Store, ArtifactRef]) -> None:
    store, sample = sampled
    assert find_sample(store, None) == find_sample(store, sample.path) == sample
    with pytest.raises(InputDataError, match="no finished sample") as error:
        find_sample(store, "review-sample/other")
    assert sample.path in error.value.hint
