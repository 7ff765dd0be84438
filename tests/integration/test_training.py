"""Both stages on real Ray Train workers: world size, interruptions, lineage, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from echoray import artifacts
from echoray.config import RunConfig
from echoray.errors import InputDataError, ModelLoadError
from echoray.model.base import resolve_base
from echoray.model.upcycle import upcycle
from echoray.storage import store_of
from echoray.train import export_checkpoint, load_checkpoint, train_stage
from echoray.types import ArtifactRef, Progress
from tests.integration.conftest import S3Server

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

NUM_STEPS = 12
OFTEN = {"checkpoint_every_steps": 2}


def silent(step: str, done: int, total: int | None) -> None:
    return None


def train(run: RunConfig, shards: ArtifactRef, progress: Progress = silent) -> ArtifactRef:
    return train_stage(run, "align", shards=shards, parent=None, progress=progress)


def named(run: RunConfig, name: str, **settings: Any) -> RunConfig:
    """The same training under another name, hence another artifact."""
    return run.merged({"name": name, "train": settings})


def metrics(run: RunConfig, ref: ArtifactRef) -> list[dict[str, Any]]:
    lines = store_of(run).read_bytes(f"{ref.path}/metrics.jsonl").decode().splitlines()
    return [json.loads(line) for line in lines]


def losses(run: RunConfig, ref: ArtifactRef) -> list[float]:
    return [
        value for row in metrics(run, ref) for value in (row["loss"], row["balance_loss"], row["grad_norm"])
    ]


def weights(run: RunConfig, ref: ArtifactRef) -> dict[str, torch.Tensor]:
    return load_file(artifacts.fetch(store_of(run), ref) / "model.safetensors")


@pytest.fixture(scope="module")
def aligned(ray_local: None, tiny_run: RunConfig, tiny_shards: ArtifactRef) -> ArtifactRef:
    return train(tiny_run, tiny_shards)


@pytest.fixture(scope="module")
def finetuned(
    ray_local: None, tiny_run: RunConfig, tiny_shards: ArtifactRef, aligned: ArtifactRef
) -> ArtifactRef:
    return train_stage(tiny_run, "finetune", shards=tiny_shards, parent=aligned, progress=silent)


def test_two_workers_with_one_killed_train_like_one_worker(
    tiny_run: RunConfig, tiny_shards: ArtifactRef, aligned: ArtifactRef
) -> None:
    run = named(tiny_run, "killed", num_workers=2, align=OFTEN)
    killed_at: list[int] = []

    def kill_a_worker(step: str, done: int, total: int | None) -> None:
        if done >= 3 and not killed_at:
            workers = [one for one in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in cmdline(one)]
            os.kill(workers[-1].pid, signal.SIGKILL)
            killed_at.append(done)

    ref = train(run, tiny_shards, kill_a_worker)
    assert 3 <= killed_at[0] < NUM_STEPS
    assert losses(run, ref) == pytest.approx(losses(tiny_run, aligned), rel=1e-4)
    assert json.loads(store_of(run).read_bytes(f"{ref.path}/stage.json"))["num_workers"] == 2
    expected = weights(tiny_run, aligned)
    for name, value in weights(run, ref).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-4)


def cmdline(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())


_DRIVER = """
import sys
from pathlib import Path
from echoray.config import RunConfig
from echoray.platform.runtime import ray_session
from echoray.train import train_stage
from echoray.types import ArtifactRef

run = RunConfig.model_validate_json(sys.argv[1])
with ray_session(run.cluster):
    train_stage(run, "align", shards=ArtifactRef(*sys.argv[2:5]), parent=None, progress=lambda *_: None)
"""


def driver_command(run: RunConfig, shards: ArtifactRef) -> list[str]:
    return [sys.executable, "-c", _DRIVER, run.model_dump_json(), shards.kind, shards.name, shards.digest]


def test_a_stage_whose_driver_was_killed_goes_on_with_another_number_of_workers(
    tiny_run: RunConfig, tiny_shards: ArtifactRef, aligned: ArtifactRef
) -> None:
    run = named(tiny_run, "driver-killed", num_workers=2, align=OFTEN)
    command = driver_command(run, tiny_shards)
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = store_of(run).local("runs")
    assert runs is not None
    wait_for(lambda: list(runs.glob("driver-killed-*/checkpoint_2*/state.json")))
    driver.kill()
    driver.wait()
    seen: list[int] = []
    ref = train(
        named(run, "driver-killed", num_workers=1), tiny_shards, lambda _, done, total: seen.append(done)
    )
    assert min(seen) > 2, "the second run began anew"
    assert losses(run, ref) == pytest.approx(losses(tiny_run, aligned), rel=1e-4)
    assert not list(runs.glob("driver-killed-*")), "checkpoints of a finished stage are left"


def test_a_stage_in_object_storage_equals_one_in_a_folder(
    tiny_run: RunConfig, tiny_shards: ArtifactRef, aligned: ArtifactRef, s3_server: S3Server
) -> None:
    run = named(tiny_run, tiny_run.name, align={"checkpoint_every_steps": 5}).merged(
        {
            "workspace": f"s3://{s3_server.bucket}/training",
            "storage": {"endpoint_url": s3_server.endpoint_url, "region": "us-east-1"},
        }
    )
    local, remote = store_of(tiny_run), store_of(run)
    (studies,) = artifacts.require(local, tiny_shards, made_by="this test").parents
    for path in (*local.list(tiny_shards.path), *local.list(studies.path)):
        remote.upload(Path(local.key(path)), path)
    # Its own Ray instance: the workers take the server's credentials from the environment they start in.
    done = subprocess.run(driver_command(run, tiny_shards), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # What is trained and how is the same, hence the artifact's name; where and how often it is saved is not.
    assert losses(run, aligned) == losses(tiny_run, aligned)
    assert not remote.list("runs")


def wait_for(condition: Any, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_a_finished_stage_is_not_trained_again(
    tiny_run: RunConfig, tiny_shards: ArtifactRef, aligned: ArtifactRef
) -> None:
    def refuse(step: str, done: int, total: int | None) -> None:
        raise AssertionError("trained again")

    assert train(named(tiny_run, tiny_run.name, num_workers=2), tiny_shards, refuse) == aligned


def test_metrics_have_a_row_per_step_and_expert_shares_add_up(
    tiny_run: RunConfig, aligned: ArtifactRef
) -> None:
    rows = metrics(tiny_run, aligned)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(sum(layer) == pytest.approx(1, abs=1e-3) for row in rows for layer in row["expert_load"])
    assert rows[0]["learning_rate"] == tiny_run.train.align.learning_rate


def test_stage_two_starts_from_stage_one_and_leaves_the_base_as_it_was(
    tiny_run: RunConfig, aligned: ArtifactRef, finetuned: ArtifactRef
) -> None:
    base = dict(
        upcycle(resolve_base(tiny_run.model.base), tiny_run.model, seed=tiny_run.seed).named_parameters()
    )
    model = dict(load_checkpoint(tiny_run, finetuned).named_parameters())
    first, second = weights(tiny_run, aligned), weights(tiny_run, finetuned)
    assert first.keys() < second.keys()
    frozen = {name for name in model if name not in second}
    assert len(frozen) > 20
    for name in frozen:
        assert torch.equal(model[name], base[name.replace(".base_layer", "")]), name
    stage_one_end = metrics(tiny_run, aligned)[-1]["loss"]
    # LoRA starts at zero: stage 2's first loss continues where stage 1 ended.
    assert abs(metrics(tiny_run, finetuned)[0]["loss"] - stage_one_end) < 1
    assert metrics(tiny_run, aligned)[0]["loss"] - stage_one_end > 1


def test_the_export_loads_in_transformers_and_gives_the_checkpoints_logits(
    tiny_run: RunConfig, aligned: ArtifactRef, finetuned: ArtifactRef
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = export_checkpoint(tiny_run, finetuned)
    folder = artifacts.fetch(store_of(tiny_run), model)
    exported = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert not any("lora" in name for name, _ in exported.named_parameters())
    trained = load_checkpoint(tiny_run, finetuned)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    image = torch.randn(16, 1176, generator=torch.Generator().manual_seed(1))
    pads = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    inputs = {
        "input_ids": tokenizer(f"{pads}The liver is", return_tensors="pt").input_ids,
        "pixel_values": image,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == exported.config.image_token_id).int()
    with torch.no_grad():
        torch.testing.assert_close(exported(**inputs).logits, trained(**inputs).logits, rtol=1e-4, atol=1e-4)
    metadata = json.loads((folder / "echoray.json").read_text())
    assert {finetuned.path, aligned.path} <= metadata["lineage"].keys()
    assert [one["stage"] for one in metadata["training"]] == ["align", "finetune"]


def test_an_error_that_a_restart_cannot_cure_reaches_the_caller_as_itself(
    tiny_run: RunConfig, tiny_shards: ArtifactRef
) -> None:
    dense = tiny_run.merged({"name": "dense", "model": {"num_experts": 0}})
    with pytest.raises(ModelLoadError, match="no parameter matches"):
        train(dense, tiny_shards)
    assert not store_of(dense).list("checkpoint/dense-align"), "a failed stage left files"


def test_shards_without_training_examples_are_refused_before_any_worker_starts(tiny_run: RunConfig) -> None:
    def build(folder: Path) -> dict[str, int]:
        (folder / "ledger.json").write_text("[]")
        return {"train": 0}

    empty = artifacts.plan("shards", "empty", config={})
    artifacts.produce(store_of(tiny_run), empty, build, config={})
    with pytest.raises(InputDataError, match="no training examples"):
        train(tiny_run, empty)


def test_training_leaves_ctrl_c_to_the_caller(aligned: ArtifactRef) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
