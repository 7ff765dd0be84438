"""Evaluation on real Ray Data workers: worker count, batch composition, resuming, pages."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from echoray import artifacts
from echoray.config import ModelConfig, RunConfig, load_run
from echoray.data.batch import SCHEMA_KEY, SHARD_SCHEMA
from echoray.data.conversations import SYSTEM_PROMPT
from echoray.data.tokens import ConversationTokenizer
from echoray.errors import EvaluationError, ModelLoadError, ShardError
from echoray.evaluate import evaluate, load_report, sample_case
from echoray.evaluate.examples import list_entries, read_rows
from echoray.evaluate.generate import Decoder, Prompt
from echoray.evaluate.predict import Candidate, predict
from echoray.model.base import embedded_base
from echoray.model.export import PROCESSOR_FILES
from echoray.model.upcycle import upcycle
from echoray.storage import store_of
from echoray.types import SYSTEMS, ArtifactRef, Conversation, Progress

pytestmark = pytest.mark.integration

IMAGE_PX = 56
NUM_REPORTS = 14


def silent(step: str, done: int, total: int | None) -> None:
    return None


def run_in(folder: Path, **evaluation: object) -> RunConfig:
    settings = {"max_new_tokens": 24, "batch_size": 5, "bootstrap_samples": 200, **evaluation}
    return load_run("tiny").merged({"workspace": str(folder), "evaluate": settings})


def png(rng: np.random.Generator, width_px: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (IMAGE_PX, width_px, 3), dtype=np.uint8)).save(target, "PNG")
    return target.getvalue()


def make_shards(run: RunConfig) -> ArtifactRef:
    """Two test shards of reports: one or two noisy frames of several widths, prompts of several lengths."""
    rng = np.random.default_rng(3)
    tokenizer = ConversationTokenizer(embedded_base(), run.data.max_length_tokens)
    rows = []
    for index in range(NUM_REPORTS):
        system = SYSTEMS[index % len(SYSTEMS)]
        prompt = "Describe the picture." + " Name the shape and the colour." * (index % 3)
        one = Conversation(
            f"{index:04d}-report-0", f"{index:04d}", system, "report", "en", prompt, f"The {system}."
        )
        rows.append(
            tokenizer.encode(one, [png(rng, IMAGE_PX + 28 * (index % 3)) for _ in range(1 + index % 2)])
        )

    def build(folder: Path) -> dict[str, int]:
        (folder / "test").mkdir()
        for number, part in enumerate((rows[:9], rows[9:])):
            table = pa.Table.from_pylist(part).replace_schema_metadata({SCHEMA_KEY: SHARD_SCHEMA})
            pq.write_table(table, folder / f"test/part-{number:05d}.parquet")
        return {"test": len(rows)}

    ref = artifacts.plan("shards", run.name, config={"made": "by a test"})
    artifacts.produce(store_of(run), ref, build, config={"made": "by a test"})
    return ref


@pytest.fixture(scope="module")
def upcycled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EchoVLM whose fresh experts change what the base says."""
    folder = tmp_path_factory.mktemp("upcycled")
    config = ModelConfig(
        moe_intermediate_size=128,
        shared_expert_intermediate_size=256,
        initial_alpha=0.5,
        experts_implementation="eager",
    )
    upcycle(embedded_base(), config, seed=5).save_pretrained(folder)
    for name in PROCESSOR_FILES:
        if (embedded_base() / name).exists():
            shutil.copyfile(embedded_base() / name, folder / name)
    return folder


def predicted(
    run: RunConfig, models: dict[str, Path], progress: Progress = silent
) -> dict[str, dict[str, str]]:
    store, shards = store_of(run), make_shards(run)
    entries = list_entries(store, shards, run.evaluate.tasks)
    return predict(run, store, shards, [Candidate.of(*one) for one in models.items()], entries, progress)


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, upcycled: Path, ray_local: None
) -> dict[str, dict[str, str]]:
    """What one worker says, one prompt at a time (no padding)."""
    run = run_in(tmp_path_factory.mktemp("one"), batch_size=1).merged({"data": {"num_workers": 1}})
    return predicted(run, {"base": embedded_base(), "upcycled": upcycled})


def test_greedy_texts_equal_those_of_transformers_own_processor(
    tmp_path: Path, expected: dict[str, dict[str, str]], upcycled: Path
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run = run_in(tmp_path)
    store, shards = store_of(run), make_shards(run)
    model = AutoModelForImageTextToText.from_pretrained(upcycled, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(upcycled)
    for entry, row in read_rows(store, list_entries(store, shards, ["report"])[:4], ["images"]):
        images = [Image.open(io.BytesIO(image)) for image in row["images"]]
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": entry.prompt}]
        messages = [{"role": "system", "content": SYSTEM_PROMPT["en"]}, {"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=[text], images=images, return_tensors="pt", do_resize=False)
        made = model.generate(**inputs, do_sample=False, max_new_tokens=run.evaluate.max_new_tokens)
        answer = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert expected["upcycled"][entry.example_id] == answer
    assert expected["upcycled"] != expected["base"]


def test_the_number_of_workers_and_the_batches_do_not_change_a_text(
    tmp_path: Path, expected: dict[str, dict[str, str]], upcycled: Path
) -> None:
    run = run_in(tmp_path, batch_size=5)
    assert run.data.num_workers == 2
    assert predicted(run, {"base": embedded_base(), "upcycled": upcycled}) == expected


def test_an_interrupted_evaluation_keeps_the_models_that_were_finished(
    tmp_path: Path, expected: dict[str, dict[str, str]], upcycled: Path
) -> None:
    models = {"base": embedded_base(), "upcycled": upcycled}
    run = run_in(tmp_path, batch_size=7).merged({"data": {"num_workers": 1}})

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.endswith("upcycled"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predicted(run, models, interrupt)
    (kept,) = tmp_path.glob("predictions/*/manifest.json")
    written = kept.stat().st_mtime_ns
    steps: list[tuple[str, int]] = []
    assert predicted(run, models, lambda step, done, _: steps.append((step, done))) == expected
    assert kept.stat().st_mtime_ns == written
    assert [done for step, done in steps if step.endswith("base")] == [NUM_REPORTS]
    assert [done for step, done in steps if step.endswith("upcycled")][-1] == NUM_REPORTS


def test_a_killed_worker_changes_nothing(tmp_path: Path, expected: dict[str, dict[str, str]]) -> None:
    killed: list[int] = []

    def kill_one(step: str, done: int, total: int | None) -> None:
        for process in psutil.Process().children(recursive=True):
            if not killed and "MapWorker" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.kill()

    run = run_in(tmp_path, batch_size=2).merged({"data": {"num_workers": 1}})
    assert predicted(run, {"base": embedded_base()}, kill_one)["base"] == expected["base"]
    assert killed


def test_an_evaluation_writes_figures_predictions_and_pages_once(
    tmp_path: Path, expected: dict[str, dict[str, str]], upcycled: Path
) -> None:
    run = run_in(tmp_path, num_pictures=3)
    shards, models = make_shards(run), {"base": embedded_base(), "stage 2": upcycled}
    ref = evaluate(run, shards=shards, models=models, progress=silent)
    artifacts.verify(store_of(run), ref)
    folder = tmp_path / ref.path
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    by_model = {"base": expected["base"], "stage 2": expected["upcycled"]}
    assert len(rows) == 2 * NUM_REPORTS
    assert all(row["prediction"] == by_model[row["model"]][row["example_id"]] for row in rows)
    report = load_report(run, ref)
    assert list(report.models) == ["base", "stage 2"]
    assert report.counts == {"report": NUM_REPORTS}
    page = (folder / "report.html").read_text()
    assert "not a medical device" in page and page.count("data:image/png;base64,") == 3
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "| Average    | ROUGE-L |" in (folder / "table.md").read_text()
    assert len(list(folder.glob("cases/*.png"))) == 3
    manifest = (folder / "manifest.json").stat().st_mtime_ns
    steps: list[str] = []
    assert evaluate(run, shards=shards, models=models, progress=lambda *step: steps.append(step[0])) == ref
    assert not steps and (folder / "manifest.json").stat().st_mtime_ns == manifest


def test_what_cannot_be_evaluated_is_refused_with_its_name(tmp_path: Path, ray_local: None) -> None:
    run = run_in(tmp_path)
    shards = make_shards(run)
    with pytest.raises(EvaluationError, match="no example of vqa"):
        evaluate(
            run_in(tmp_path, tasks=["vqa"]), shards=shards, models={"base": embedded_base()}, progress=silent
        )
    with pytest.raises(EvaluationError, match="no model"):
        evaluate(run, shards=shards, models={}, progress=silent)
    with pytest.raises(ModelLoadError, match=r"nowhere: no config\.json"):
        evaluate(run, shards=shards, models={"base": tmp_path / "nowhere"}, progress=silent)


def test_a_shard_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    shards = make_shards(run)
    path = tmp_path / shards.path / "test/part-00000.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({SCHEMA_KEY: b"0"}), path)
    with pytest.raises(ShardError, match="schema b'0', expected b'1'"):
        sample_case(run, shards)


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(embedded_base(), folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layers.0.mlp.down_proj" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="1 weights do not fit"):
        Decoder(folder, dtype=torch.float32, device="cpu")


def test_a_text_only_prompt_after_one_with_images_is_decoded_as_if_it_were_alone(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    store, shards = store_of(run), make_shards(run)
    columns = ["input_ids", "labels", "images", "grid_thw"]
    entries = list_entries(store, shards, ["report"])[:3]
    pictured = [Prompt.of(row) for _, row in read_rows(store, entries, columns)]
    decoder = Decoder(embedded_base(), dtype=torch.float32, device="cpu")
    ids = decoder.tokenizer("<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n").input_ids
    alone = Prompt(np.asarray(ids), None, np.zeros((0, 3), np.int64))
    before = decoder.decode([alone], 12)
    decoder.decode(pictured, 12)
    assert decoder.decode([alone], 12) == before
    mixed = decoder.decode([pictured[0], alone, pictured[1]], 12)
    assert mixed[1] == before[0]
    assert [mixed[0], mixed[2]] == decoder.decode(pictured[:2], 12)
