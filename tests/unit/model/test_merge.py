"""Merging proves itself: an adapter without effect, or one that is merged wrongly, stops the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor

from echoray.config import LoraConfig
from echoray.errors import ExportError
from echoray.model.merge import merge_adapters, probe_inputs
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import LORA_TARGETS, add_adapters

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)


@pytest.fixture
def adapted(build: Build, randomise_adapters: Callable[..., None]) -> Build:
    """Builds a model of which every adapter but ``untrained`` has an effect."""

    def make(untrained: str = "nothing") -> EchoVLMForConditionalGeneration:
        model = build()
        add_adapters(model, LORA, seed=1)
        randomise_adapters(model, untrained)
        return model

    return make


def test_an_adapter_that_was_never_trained_stops_the_export_by_name(adapted: Build) -> None:
    with pytest.raises(ExportError, match=r"1 adapters change nothing: .*layers\.1\.self_attn\.v_proj"):
        merge_adapters(adapted(untrained="layers.1.self_attn.v_proj"))


@pytest.mark.parametrize("part", ["visual.blocks.0.attn.qkv", "visual.merger", "layers.1.self_attn.o_proj"])
def test_a_wrong_merge_of_any_part_shows_in_the_probe(
    adapted: Build, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Half of an adapter is lost, as a wrong scale would: the weights change, and the answers with them."""
    model, right = adapted(), Linear.get_delta_weight
    wrong = {id(module) for name, module in model.named_modules() if part in name}
    monkeypatch.setattr(
        Linear, "get_delta_weight", lambda self, name: right(self, name) * (0.5 if id(self) in wrong else 1)
    )
    with pytest.raises(ExportError, match="logits differ"):
        merge_adapters(model)


def test_bfloat16_is_merged_within_its_own_tolerance(adapted: Build) -> None:
    model = adapted().to(torch.bfloat16)
    merge_adapters(model)
    assert not any(".lora_" in name for name, _ in model.named_parameters())


def test_the_probe_reaches_the_vision_part_and_is_the_same_every_time(build: Build) -> None:
    model = build()
    probe, again = probe_inputs(model), probe_inputs(model)
    assert all(torch.equal(probe[key], again[key]) for key in probe)
    model(**probe).logits.square().sum().backward()
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_pefts_own_adapters_are_saved_and_loaded(
    build: Build, prompts: Prompts, randomise_adapters: Callable[..., None], tmp_path: Path
) -> None:
    inputs = prompts(1, 9, (4, 6))
    settings = PeftConfig(r=4, lora_alpha=8, target_modules="|".join(LORA_TARGETS))
    wrapped = get_peft_model(build(), settings).eval()
    plain_BTV = wrapped(**inputs).logits
    randomise_adapters(wrapped)
    expected_BTV = wrapped(**inputs).logits
    assert (expected_BTV - plain_BTV).abs().max() > 0.05
    wrapped.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits, expected_BTV)
