"""Conversion between the released layout and ours, and what inspection says of a directory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from echoray.cli.app import app, run_app
from echoray.config import LoraConfig
from echoray.errors import ModelLoadError, StorageError, UsageError
from echoray.model.convert import convert_model
from echoray.model.export import export_model, load_exported
from echoray.model.facts import inspect_model
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.released import load_released
from echoray.model.trainable import STAGES, apply_stage, parameter_counts

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
GOLDEN = Path(__file__).parents[2] / "golden" / "released-layer-tiny"
METADATA: dict[str, Any] = {
    "name": "small",
    "image_size_px": 56,
    "image_layout": "dynamic",
    "system_prompt": {"en": "Drafts."},
    "lineage": {},
    "training": [],
}
SHARD_BYTES = 200_000


def exported(model: EchoVLMForConditionalGeneration, folder: Path) -> Path:
    base = folder.with_name("processor")
    base.mkdir(exist_ok=True)
    (base / "tokenizer.json").write_text('{"a": 1}')
    export_model(model, base, folder, metadata=METADATA)
    return folder


def content(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    parts = [load_file(file) for file in files]
    return {name: tensor for part in parts for name, tensor in part.items()}


def scattered(folder: Path, target: Path, num_files: int) -> Path:
    """The same directory with neighbouring tensors, such as one layer's experts, in different files."""
    weights = content(folder)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    index = {}
    for number in range(num_files):
        part = {name: weights[name] for name in sorted(weights)[number::num_files]}
        save_file(part, target / f"part-{number}.safetensors")
        index |= dict.fromkeys(part, f"part-{number}.safetensors")
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return target


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    same = all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
    return one.keys() == other.keys() and same


@torch.no_grad()
def test_the_converted_golden_checkpoint_gives_the_recorded_logits(tmp_path: Path) -> None:
    made = convert_model(GOLDEN, tmp_path / "ours")
    assert (made.layout, made.num_tensors, made.num_files) == ("echovlm", 76, 1)
    recorded = load_file(GOLDEN / "expected.safetensors")
    converted, released = load_exported(tmp_path / "ours"), load_released(GOLDEN)
    for name, inputs in (
        ("text_logits", {"input_ids": recorded["text_input_ids"]}),
        (
            "logits",
            {
                **{key: recorded[key] for key in ("input_ids", "attention_mask", "pixel_values")},
                "image_grid_thw": recorded["image_grid_thw"],
                "mm_token_type_ids": (recorded["input_ids"] == 6).int(),
            },
        ),
    ):
        logits_BTV = converted(**inputs).logits
        torch.testing.assert_close(logits_BTV, released(**inputs).logits, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(logits_BTV, recorded[name], rtol=0.0, atol=1e-5)
    assert equal(dict(converted.state_dict()), dict(released.state_dict()))
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "not a medical device" in card and "license:" not in card
    save_file(content(tmp_path / "ours"), tmp_path / "same", metadata={"format": "pt"})
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (tmp_path / "same").read_bytes()
    back = convert_model(tmp_path / "ours", tmp_path / "back")
    assert (back.layout, back.num_tensors) == ("released", 96)
    assert equal(content(tmp_path / "back"), load_file(GOLDEN / "model.safetensors"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_files", [1, 7])
def test_a_round_trip_keeps_every_bit(
    build: Build, prompts: Prompts, tmp_path: Path, num_files: int, tied: bool
) -> None:
    model = build(mix="token").to(torch.bfloat16)
    for layer in model.model.language_model.layers:
        layer.mlp.router.float()
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    ours = exported(model, tmp_path / "ours")
    limit = {} if num_files == 1 else {"max_shard_bytes": SHARD_BYTES}
    source = ours if num_files == 1 else scattered(ours, tmp_path / "ours-scattered", num_files)
    there = convert_model(source, tmp_path / "released", **limit)
    assert (there.num_files > 1) == (num_files > 1)
    assert sum("experts.3.up_proj" in name for name in content(tmp_path / "released")) == 2
    released = tmp_path / "released"
    if num_files > 1:
        assert all(file.stat().st_size < SHARD_BYTES + 20_000 for file in released.glob("*.safetensors"))
        released = scattered(released, tmp_path / "released-scattered", num_files)
    convert_model(released, tmp_path / "again", **limit)
    assert equal(content(tmp_path / "again"), content(ours))
    assert ("lm_head.weight" in content(ours)) != tied
    for name in ("tokenizer.json", "generation_config.json", "echoray.json"):
        assert (tmp_path / "again" / name).read_bytes() == (ours / name).read_bytes()
    assert inspect_model(released).dtypes == ("bfloat16", "float32")
    assert len({inspect_model(one).digest for one in (ours, released, tmp_path / "again")}) == 1
    with torch.no_grad():
        inputs = prompts(1, 9, (4, 6))
        expected_BTV = load_exported(ours)(**inputs).logits
        assert torch.equal(load_released(released)(**inputs).logits, expected_BTV)
        assert torch.equal(load_exported(tmp_path / "again")(**inputs).logits, expected_BTV)


MEASURE = """
import sys, threading
from pathlib import Path
from echoray.model.convert import convert_model

def anonymous_mb():
    line = next(one for one in open("/proc/self/status") if one.startswith("RssAnon"))
    return int(line.split()[1]) / 1000

def measured(work):
    before, peaks, done = anonymous_mb(), [0.0], threading.Event()
    def watch():
        while not done.wait(0.0005):
            peaks.append(anonymous_mb())
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    print(max(peaks) - before)

golden, big, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
released, again = big.with_name("released"), big.with_name("again")
convert_model(golden, big.with_name("warm"))
measured(lambda: convert_model(big, released, max_shard_bytes=limit))
measured(lambda: convert_model(released, again, max_shard_bytes=limit))
measured(lambda: [file.read_bytes() for file in again.glob("model-00001*")])
"""


def test_memory_does_not_grow_with_the_model(build: Build, tmp_path: Path) -> None:
    limit = 24_000_000
    config = build(mix="token", num_experts=16, moe_intermediate_size=1832).config
    config.text_config.num_hidden_layers, config.text_config.layer_types = 8, None
    big = EchoVLMForConditionalGeneration(type(config)(**config.to_dict()))  # 22.5 MB of experts per layer
    big.save_pretrained(tmp_path / "big", max_shard_size=limit)
    assert len(list((tmp_path / "big").glob("*.safetensors"))) >= 8
    command = [sys.executable, "-c", MEASURE, str(GOLDEN), str(tmp_path / "big"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    to_released_mb, to_ours_mb, one_file_mb = map(float, done.stdout.split())
    assert one_file_mb > 20  # what is to be seen is seen
    assert to_released_mb < 10 and to_ours_mb < 10
    assert len(list((tmp_path / "released").glob("model-*"))) >= 8
    assert equal(content(tmp_path / "again"), content(tmp_path / "big"))


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def interrupt(step: str, done: int, total: int | None) -> None:
        seen.append([one.name for one in tmp_path.iterdir()])
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "ours"
    with pytest.raises(KeyboardInterrupt):
        convert_model(GOLDEN, out, max_shard_bytes=SHARD_BYTES, progress=interrupt)
    assert len(seen) == 2 and all(names[0].startswith(".ours.partial-") for names in seen)
    assert not list(tmp_path.iterdir())
    out.mkdir()  # an empty folder may be there
    convert_model(GOLDEN, out, max_shard_bytes=SHARD_BYTES)
    assert inspect_model(out).digest == inspect_model(GOLDEN).digest
    with pytest.raises(UsageError, match="not empty"):
        convert_model(GOLDEN, out)
    with pytest.raises(StorageError, match="cannot be written"):
        convert_model(GOLDEN, Path("/proc/echoray/ours"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mix": "scalar"}, "mix 'scalar'"),
        ({"mix": "token", "moe_layers": (1,)}, "layers without experts"),
        ({"mix": "token", "shared_expert_intermediate_size": 0}, "no shared expert"),
    ],
)
def test_what_the_released_layout_cannot_hold_is_refused(
    build: Build, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    ours = exported(build(**changes), tmp_path / "ours")
    for to in (None, "echovlm"):
        with pytest.raises(ModelLoadError, match=named if to is None else "already"):
            convert_model(ours, tmp_path / "out", to=to)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_dense_model_and_adapters_are_no_source(qwen_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="dense"):
        convert_model(qwen_dir, tmp_path / "out")
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="adapters"):
        inspect_model(tmp_path / "adapters")


def test_a_source_that_does_not_fit_is_refused_by_name(
    misfit: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (source, named), out = misfit, tmp_path / "out"
    for words in (["convert", str(source), str(out)], ["inspect", str(source)]):
        monkeypatch.setattr(sys, "argv", ["echoray", "model", *words])
        with pytest.raises(SystemExit) as ended:
            run_app()
        said = capsys.readouterr().err
        assert (ended.value.code, "Traceback" in said) == (2, False)
        assert named in said and "hint: " in said
    assert not out.exists()


def test_a_sharded_source_must_be_whole_and_of_one_mind(tmp_path: Path) -> None:
    source = scattered(GOLDEN, tmp_path / "golden", 5)
    part = load_file(source / "part-3.safetensors")
    expert = next(name for name in part if "experts" in name)
    for changed, named in (
        (part | {expert: part[expert][:5].contiguous()}, f"{expert}"),
        (part | {expert: part[expert].half()}, f"{expert}"),
        (part | {"visual.merger.ln_q.bias": torch.zeros(128)}, "in two files"),
        (part | {"model.language_model.norm.weight": torch.zeros(128)}, "under two names"),
        (None, "part-3.safetensors cannot be read"),
    ):
        if changed is None:
            (source / "part-3.safetensors").unlink()
        else:
            save_file(changed, source / "part-3.safetensors")
        with pytest.raises(ModelLoadError) as caught:
            convert_model(source, tmp_path / "out")
        assert named in caught.value.message


def test_a_tied_head_that_is_written_out_must_equal_the_embeddings(build: Build, tmp_path: Path) -> None:
    model = build(mix="token")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    ours = exported(model, tmp_path / "ours")
    plain, weights = inspect_model(ours), content(ours)
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, ours / "model.safetensors")
    assert inspect_model(ours) == plain
    head[0, 0] += 1
    save_file(weights | {"lm_head.weight": head}, ours / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"not known: lm_head\.weight"):
        inspect_model(ours)


def inspected(folder: Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["model", "inspect", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("mix", ["scalar", "token"])
def test_inspection_counts_what_the_loaded_model_has(build: Build, tmp_path: Path, mix: str) -> None:
    ours = exported(build(mix=mix, moe_layers=(1,)), tmp_path / "ours")
    found = inspected(ours)
    counts = parameter_counts(load_exported(ours))
    parts = {part: counts[part] for part in ("vision", "projector", "language", "experts")}
    assert found["parameters"] == {**parts, "total": sum(parts.values())}
    for name, stage in STAGES.items():
        model = load_exported(ours)
        apply_stage(model, stage, LoraConfig(), seed=1)
        assert found["trainable"][name] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (found["layout"], found["mix"], found["dtypes"]) == ("echovlm", mix, ["float32"])
    assert (found["experts"], found["experts_per_token"], found["expert_layers"], found["layers"]) == (
        4, 2, [1], 2)  # fmt: skip
    shown = CliRunner().invoke(app, ["model", "inspect", str(ours)]).stdout
    assert f"{found['parameters']['total']:,}" in shown and found["digest"] in shown


def test_a_dense_model_shows_no_experts(qwen_dir: Path) -> None:
    found = inspected(qwen_dir)
    assert (found["layout"], found["mix"], found["experts"], found["trainable"]) == ("qwen2_vl", None, 0, {})
    assert found["parameters"]["total"] == sum(tensor.numel() for tensor in content(qwen_dir).values())
    assert "none: a dense model" in CliRunner().invoke(app, ["model", "inspect", str(qwen_dir)]).stdout


def test_the_digest_is_of_the_values_not_of_the_files(tmp_path: Path) -> None:
    digest = inspected(GOLDEN)["digest"]
    copy = scattered(GOLDEN, tmp_path / "copy", 4)
    assert inspected(copy)["digest"] == digest
    weights = load_file(copy / "part-2.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, copy / "part-2.safetensors")
    assert inspected(copy)["digest"] != digest
