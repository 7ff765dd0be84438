"""Upcycling: what is kept of the base, what is new, and the parameters that Table 9 adds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from echoray.config import ModelConfig, load_run
from echoray.errors import ConfigError, ModelLoadError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.upcycle import is_moe, upcycle

Configure = Callable[..., ModelConfig]
Prompts = Callable[..., dict[str, Tensor]]
NEW, OLD = ("model.language_model.", "model.visual."), ("model.", "visual.")


def base_weights(folder: Path) -> dict[str, Tensor]:
    """The base's own weights by transformers 5's names."""
    from transformers import Qwen2VLForConditionalGeneration

    return dict(Qwen2VLForConditionalGeneration.from_pretrained(folder).state_dict())


def rewritten(base: Path, target: Path, prefixes: tuple[str, str], num_files: int) -> Path:
    """``base`` with its weights under the old or the new names, in one file or sharded."""
    target.mkdir()
    shutil.copyfile(base / "config.json", target / "config.json")
    named = {}
    for key, tensor in base_weights(base).items():
        for new, wanted in zip(NEW, prefixes, strict=True):
            if key.startswith(new):
                key = wanted + key.removeprefix(new)
                break
        named[key] = tensor.contiguous()
    if num_files == 1:
        save_file(named, target / "model.safetensors", metadata={"format": "pt"})
        return target
    index = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {key: named[key] for key in sorted(named)[number::num_files]}
        save_file(part, target / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return target


def equal(one: dict[str, Tensor], other: dict[str, Tensor], keys: Iterable[str]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in keys)


@pytest.mark.parametrize("prefixes", [OLD, NEW], ids=["old names", "new names"])
@pytest.mark.parametrize("num_files", [1, 3])
def test_every_layout_of_the_base_keeps_all_of_its_weights(
    qwen_dir: Path, model_config: Configure, prefixes: tuple[str, str], num_files: int, tmp_path: Path
) -> None:
    folder = rewritten(qwen_dir, tmp_path / "base", prefixes, num_files)
    found, expected = upcycle(folder, model_config(), seed=1).state_dict(), base_weights(qwen_dir)
    assert equal(found, expected, expected)
    assert all(is_moe(key) for key in found.keys() - expected.keys())
    assert any(is_moe(key) for key in found)


@pytest.mark.parametrize("expert_init", ["random", "slices"])
@pytest.mark.parametrize("mix", ["scalar", "token"])
def test_new_weights_depend_on_the_seed_alone(
    qwen_dir: Path, model_config: Configure, mix: str, expert_init: str
) -> None:
    config = model_config(mix=mix, expert_init=expert_init)
    torch.manual_seed(1)
    first = upcycle(qwen_dir, config, seed=7).state_dict()
    torch.manual_seed(2)
    again, other = (upcycle(qwen_dir, config, seed=seed).state_dict() for seed in (7, 8))
    assert equal(first, again, first)
    routers = [key for key in first if ".router." in key]
    assert routers and not any(torch.equal(first[key], other[key]) for key in routers)


@torch.no_grad()
def test_it_is_the_base_in_the_limit_of_a_whole_share_for_the_ffn(
    qwen_dir: Path, model_config: Configure, prompts: Prompts
) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    inputs = prompts(1, 9, (4, 6))
    base_BTV = Qwen2VLForConditionalGeneration.from_pretrained(qwen_dir).eval()(**inputs).logits

    def distance(alpha: float) -> float:
        model = upcycle(qwen_dir, model_config(initial_alpha=alpha), seed=1)
        return float((model(**inputs).logits - base_BTV).abs().max())

    far, near, nearest = (distance(alpha) for alpha in (0.9, 0.999, 0.999999))
    assert far > 20 * near > 400 * nearest
    assert nearest < 1e-4


def test_slices_are_copies_of_the_ffns_own_rows(qwen_dir: Path, model_config: Configure) -> None:
    config = model_config(expert_init="slices", num_experts=4, shared_expert_intermediate_size=64)
    block = upcycle(qwen_dir, config, seed=1).model.language_model.layers[1].mlp
    for expert, start in enumerate((0, 32, 64, 0)):  # the FFN is 96 wide, so the fourth expert begins again
        rows = slice(start, start + 32)
        gate, up = block.experts.gate_up_proj[expert].chunk(2)
        assert torch.equal(gate, block.gate_proj.weight[rows])
        assert torch.equal(up, block.up_proj.weight[rows])
        assert torch.equal(block.experts.down_proj[expert], block.down_proj.weight[:, rows])
    assert torch.equal(block.shared_expert.down_proj.weight, block.down_proj.weight[:, :64])


def test_bfloat16_is_the_dtype_of_every_weight(qwen_dir: Path, model_config: Configure) -> None:
    model = upcycle(qwen_dir, model_config(), seed=1, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "key", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "visual.merger.ln_q.bias"]
)
def test_a_missing_weight_that_is_not_the_moes_is_refused_by_name(
    qwen_dir: Path, model_config: Configure, key: str, tmp_path: Path
) -> None:
    folder = rewritten(qwen_dir, tmp_path / "base", OLD, 1)
    weights = load_file(folder / "model.safetensors")
    del weights[key]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError) as caught:
        upcycle(folder, model_config(), seed=1)
    assert key.split(".", 1)[1] in caught.value.message


def test_what_is_no_qwen2_vl_is_refused(qwen_dir: Path, model_config: Configure, tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden" / "released-layer-tiny"
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copyfile(qwen_dir / "config.json", empty / "config.json")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    released = tmp_path / "released"  # an EchoVLM already, though its model_type says Qwen2-VL
    released.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(golden / name, released / name)
    for folder, named in (
        (tmp_path / "absent", "config.json"),
        (empty, "cannot be read"),
        (other, "'bert'"),
        (released, "not known"),
    ):
        with pytest.raises(ModelLoadError) as caught:
            upcycle(folder, model_config(), seed=1)
        assert named in caught.value.message
    with pytest.raises(ConfigError, match="moe_layers is 2"):
        upcycle(qwen_dir, model_config(moe_layers=(2,)), seed=1)


def test_a_tied_head_stays_tied(qwen_dir: Path, model_config: Configure, tmp_path: Path) -> None:
    folder = rewritten(qwen_dir, tmp_path / "base", OLD, 1)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = upcycle(folder, model_config(), seed=1)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


# Text sizes of Qwen2-VL-2B and -7B, and the parameters that Table 9's row says are trained in stage 1.
SIZES = {
    "echovlm_3b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "vocab_size": 151936,
    },
    "echovlm_11b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "vocab_size": 152064,
    },
}


@pytest.mark.parametrize(("preset", "added"), [("echovlm_11b", 3_391_496_248), ("echovlm_3b", 594_714_680)])
def test_the_presets_add_the_parameters_that_the_fidelity_page_names(preset: str, added: int) -> None:
    run = load_run(preset).model
    chosen = run.model_dump(
        include={"num_experts", "moe_intermediate_size", "shared_expert_intermediate_size"}
    )

    def count(**changes: int) -> int:
        text = {**SIZES[preset], "num_hidden_layers": 28, **chosen, **changes}
        with torch.device("meta"):
            model = EchoVLMForConditionalGeneration(EchoVLMConfig(text_config=text))
        return sum(weight.numel() for weight in model.parameters())

    assert count() - count(num_experts=0) == added
    page = (Path(__file__).parents[3] / "docs" / "fidelity.md").read_text()
    assert f"{added:,}" in page
