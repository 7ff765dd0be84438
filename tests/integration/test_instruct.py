"""Instruction data from studies to shards: every generator, every step, and what experts change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.instruct import openai_client
from echoray.data.instruct.answers import occurs
from echoray.data.instruct.decisions import Decision, DecisionLog
from echoray.data.instruct.item_files import items_of
from echoray.data.instruct.items import Item
from echoray.data.instruct.kept import keep
from echoray.data.instruct.openai_client import ServiceError
from echoray.data.instruct.requests import Round
from echoray.data.instruct.review import read_sample, sample_name
from echoray.data.instruct.rounds import Generated, Rounds
from echoray.data.ledger import read_ledger
from echoray.data.shards import tokenize
from echoray.model.base import embedded_base
from echoray.storage import Store, store_of
from echoray.types import SPLITS, ArtifactRef, Report
from tests.instruct_case import run_for, silent, studies_of, study_rows
from tests.integration.pipeline_case import rows_of
from tests.openai_server import KEY, OpenAIServer, material_of, openai_server

Endpoint = Callable[..., dict[str, Any]]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "_BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def key_ref(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("secrets") / "key"
    path.write_text(KEY)
    return f"file:{path}"


@pytest.fixture
def endpoint(key_ref: str) -> Endpoint:
    def member(server: OpenAIServer, name: str = "pool-a", **changes: Any) -> dict[str, Any]:
        known = {"kind": "openai", "name": name, "model": f"{name}-model", "url": server.url}
        return {**known, "key_ref": key_ref, "attempts": 2, "concurrency": 4, **changes}

    return member


def begun(run: RunConfig, systems: tuple[str, ...] = ()) -> tuple[Store, ArtifactRef, Rounds]:
    store = store_of(run)
    studies = studies_of(store, study_rows(systems))
    return store, studies, Rounds(run, store, studies, silent)


def kept_by(run: RunConfig, store: Store, studies: ArtifactRef) -> ArtifactRef:
    return keep(run, store, studies, list(Rounds(run, store, studies, silent)), silent)


def first_round(rounds: Rounds) -> Generated:
    return rounds.generated(Round(), [])


def test_the_rules_need_no_model_and_closed_answers_stand_in_the_report(tmp_path: Path) -> None:
    store, _, rounds = begun(run_for(tmp_path))
    made = first_round(rounds)
    reports = {row["study_hash"]: Report(row["findings"], row["impression"]) for row in study_rows()}
    items = list(items_of(store, made.candidates))
    assert {one.part for one in items} >= {"report", "diagnosis", "interpretation", "risk", "surveillance"}
    assert Counter(one.part for one in items)["report"] == 42
    for one in items:
        assert one.form == "open" or occurs(one.answer, reports[one.study_hash])
    assert len({one.item_id for one in items}) == len(items)
    assert made.sample is not None


def test_the_same_inputs_give_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        run = run_for(tmp_path / str(workers)).merged({"data": {"num_workers": workers}})
        store, studies, _ = begun(run, ("thyroid", "breast"))
        kept = kept_by(run, store, studies)
        made.append((kept, artifacts.require(store, kept, made_by="").files))
    assert made[0] == made[1]


def test_the_ledger_goes_from_the_first_raw_item_to_the_last_kept_one(tmp_path: Path) -> None:
    run = run_for(tmp_path)
    store, studies, rounds = begun(run)
    made = first_round(rounds)
    kept = kept_by(run, store, studies)
    *steps, total = read_ledger(store, kept.path)
    assert [one.step for one in steps] == ["generate", "dedup", "prescreen", "review", "suspend"]
    assert total.records_in == len(list(items_of(store, made.candidates)))
    assert total.records_out == len(list(items_of(store, kept)))
    assert any(name.startswith("dedup: ") for name in total.quarantined)


def test_training_takes_the_kept_items_and_the_imported_turns(tmp_path: Path) -> None:
    run = run_for(tmp_path)
    store, studies, _ = begun(run, ("liver",))
    kept = kept_by(run, store, studies)
    shards = tokenize(run, studies, embedded_base(), silent, kept)
    rows = [row for split in SPLITS for row in rows_of(store, f"{shards.path}/{split}")]
    expected = {one.item_id: one for one in items_of(store, kept)}
    made = {row["example_id"]: row for row in rows}
    [imported] = made.keys() - expected.keys()
    assert made[imported]["prompt"] == "Which organ?"
    assert expected.keys() <= made.keys()
    for name, one in expected.items():
        assert (made[name]["prompt"], made[name]["answer"]) == (one.prompt, one.answer)
        assert (made[name]["task"], made[name]["study_hash"]) == (one.task, one.study_hash)
    assert tokenize(run, studies, embedded_base(), silent).path != shards.path


def test_endpoints_answer_with_pictures_and_what_they_say_wrongly_goes_to_quarantine(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    def answer(body: dict[str, Any]) -> str:
        asked = material_of(body)
        first = asked["report"].splitlines()[-1]
        items = [
            {"part": "interpretation", "question": f"What is seen, {body['seed']}?", "answer": first},
            {"part": "interpretation", "question": "Who?", "answer": "A finding that nobody reported."},
            {"part": "dancing", "question": "Why?", "answer": first},
            {"part": "risk", "question": "", "answer": first},
        ]
        return json.dumps({"items": items[:3] if "risk" in asked["parts"] else items[:1]})

    with openai_server(answer=answer) as server:
        run = run_for(tmp_path, members=[endpoint(server, max_images=2)])
        store, _, rounds = begun(run, ("liver",))
        made = first_round(rounds)
    [row] = read_ledger(store, made.candidates.path)
    assert row.quarantined == {"not_in_report": 6, "unknown_part": 12}
    assert row.records_in == row.records_out + 18
    spent = artifacts.require(store, made.candidates, made_by="").counts["spent"]["pool-a"]
    assert spent == {"requests": 12, "answers": 12, "tokens_in": 1200, "tokens_out": 240}
    assert all(body["messages"][-1]["content"][0]["type"] == "image_url" for body in server.requests)
    one = next(one for one in items_of(store, made.candidates) if one.provenance.generator == "pool-a")
    assert one.provenance.model == "pool-a-model"
    assert one.provenance.template.startswith("liver-")
    assert len(one.provenance.prompt_digest) == 64


def test_nothing_is_asked_twice_and_an_interrupted_run_goes_on(tmp_path: Path, endpoint: Endpoint) -> None:
    with openai_server() as server:
        run = run_for(tmp_path, members=[endpoint(server, concurrency=1)])
        _, _, rounds = begun(run, ("liver", "breast"))
        server.faults += ["ok"] * 7 + ["401"]
        with pytest.raises(ServiceError, match="HTTP 401"):
            first_round(rounds)
        assert len(server.requests) == 8
        first_round(rounds)
        assert len(server.requests) == 8 + 24 - 7
        first_round(rounds)
    assert len(server.requests) == 8 + 24 - 7


@pytest.mark.parametrize("fault", ["503", "400"])
def test_an_endpoint_that_answers_nothing_stops_the_run_and_leaves_no_failure_behind(
    tmp_path: Path, endpoint: Endpoint, fault: str
) -> None:
    with openai_server(always=fault) as server:
        run = run_for(tmp_path, members=[endpoint(server, attempts=1)])
        store, _, rounds = begun(run, ("liver",))
        with pytest.raises(ServiceError, match=r"\d+ requests in a row.*\d{3}"):
            first_round(rounds)
        assert not store.list("cache/instruct")
        server.always = "ok"
        made = first_round(rounds)
    assert read_ledger(store, made.candidates.path)[0].quarantined.keys() <= {"not_in_report"}


def test_single_failures_and_malformed_answers_are_counted_not_lost(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    def answer(body: dict[str, Any]) -> str:
        asked = material_of(body)
        if "counseling" in asked["parts"]:
            return "I would rather not."
        first = asked["report"].splitlines()[-1]
        return json.dumps({"items": [{"part": "risk", "question": "Which?", "answer": first}]})

    with openai_server(answer=answer, faults=["400"]) as server:
        member = endpoint(server, concurrency=1, answer_attempts=2)
        run = run_for(tmp_path, members=[member])
        store, _, rounds = begun(run, ("heart",))
        made = first_round(rounds)
    [row] = read_ledger(store, made.candidates.path)
    assert row.quarantined == {"http_400": 1, "malformed_answer": 5}
    spent = artifacts.require(store, made.candidates, made_by="").counts["spent"]["pool-a"]
    assert spent["answers"] == 1 + 5 * 2 + 6  # the malformed ones were asked for twice
    assert len({body["seed"] for body in server.requests}) == len(server.requests)


def test_members_share_the_requests_by_weight_and_judge_by_majority(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    def strict(body: dict[str, Any]) -> str:
        return json.dumps({"accept": False, "reason": "off_topic", "detail": "no"})

    with openai_server() as server, openai_server(answer=strict) as judge:
        members = [
            endpoint(server, weight=3),
            {"kind": "rules", "name": "rules", "weight": 1},
            *(endpoint(judge, name, weight=0) for name in ("judge-a", "judge-b", "judge-c", "judge-d")),
        ]
        screen = {"pool": ["judge-a", "judge-b", "judge-c", "judge-d"]}
        store, _, rounds = begun(run_for(tmp_path, members=members, screen=screen))
        made = first_round(rounds)
    shares = artifacts.require(store, made.candidates, made_by="").counts["spent"]
    assert shares["pool-a"]["requests"] + shares["rules"]["requests"] == 84
    assert 15 <= shares["rules"]["requests"] <= 27  # three quarters and one, of 84
    # Four of seven judges are against every open item; closed ones are no matter of opinion.
    assert made.sample is None
    [row] = read_ledger(store, made.screened.path)
    assert row.quarantined["off_topic"] > 0
    assert {one.form for one in items_of(store, made.screened)} == {"closed"}


def test_a_set_that_experts_reject_is_made_again_by_another_member(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    def bad(body: dict[str, Any]) -> str:
        parts = list(material_of(body)["parts"])
        found = [
            {"part": one, "question": f"{one}, {body['seed']}?", "answer": f"Odd {body['seed']}."}
            for one in parts
        ]
        return json.dumps({"items": found})

    with openai_server(answer=bad) as server, openai_server() as other:
        members = [endpoint(server), endpoint(other, "pool-b", weight=0.0001)]
        changes = {"judges": [], "min_reviewed": 1, "threshold": 0.3, "sample_size": 500}
        run = run_for(tmp_path, members=members, screen=changes)
        store, studies, rounds = begun(run, ("liver",))
        made = first_round(rounds)
        assert made.sample is not None
        log = DecisionLog(store, sample_name(made.sample))
        sampled = [one.item for one in read_sample(store, made.sample)]
        for one in sampled:
            reject = one.provenance.template == "liver-normal"
            log.append(
                Decision(
                    one.item_id, "reader-1", "reject" if reject else "accept", "off_topic" if reject else None
                )
            )
        kept = kept_by(run, store, studies)
    items: list[Item] = list(items_of(store, kept))
    again = [one for one in items if one.item_id.endswith("-r1")]
    assert again
    assert {(one.provenance.generator, one.provenance.template, one.form) for one in again} == {
        ("pool-b", "liver-normal", "open")
    }
    rejected = {one.item_id for one in sampled if one.provenance.template == "liver-normal"}
    assert not rejected & {one.item_id for one in items}
    steps = [one.step for one in read_ledger(store, kept.path)]
    assert steps[:5] == ["generate", "dedup", "prescreen", "review", "suspend"]
    assert steps[5] == "generate 2"
    review = json.loads(store.read_bytes(f"{kept.path}/review.json"))
    assert [one["template"] for one in review[0]["suspended"]] == ["liver-normal"]
    assert kept_by(run, store, studies) == kept
