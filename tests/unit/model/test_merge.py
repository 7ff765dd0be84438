"""Merging proves itself: an adapter without effect, or one that is merged wrongly, stops the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from echoray.config import LoraConfig
from echoray.errors import ExportError
from echoray.model.merge import merge_adapters, probe_inputs
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import LORA_TARGETS, add_adapters

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)


def adapted(build: Build, *, untrained: str = "nothing") -> EchoVLMForConditionalGeneration:
    """Every adapter but ``untrained`` has an effect."""
    model = build()
    add_adapters(model, LORA, seed=1)
    randomise(model, untrained)
    return model


def randomise(model: nn.Module, untrained: str = "nothing") -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name and untrained not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


def test_an_adapter_that_was_never_trained_stops_the_export_by_name(build: Build) -> None:
    with pytest.raises(ExportError, match=r"1 adapters change nothing: .*layers\.1\.self_attn\.v_proj"):
        merge_adapters(adapted(build, untrained="layers.1.self_attn.v_proj"))


@pytest.mark.parametrize("part", ["visual.blocks.0.attn.qkv", "visual.merger", "layers.1.self_attn.o_proj"])
def test_a_wrong_merge_of_any_part_shows_in_the_probe(
    build: Build, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Half of an adapter is lost, as a wrong scale would: the weights change, and the answers with them."""
    model, right = adapted(build), Linear.get_delta_weight
    wrong = {id(module) for name, module in model.named_modules() if part in name}
    monkeypatch.setattr(
        Linear, "get_delta_weight", lambda self, name: right(self, name) * (0.5 if id(self) in wrong else 1)
    )
    with pytest.raises(ExportError, match="logits differ"):
        merge_adapters(model)


def test_bfloat16_is_merged_within_its_own_tolerance(build: Build) -> None:
    model = adapted(build).to(torch.bfloat16)
    merge_adapters(model)
    assert not any(".lora_" in name for name, _ in model.named_parameters())


def test_the_probe_reaches_the_vision_part_and_is_the_same_every_time(build: Build) -> None:
    model = build()
    probe, again = probe_inputs(model), probe_inputs(model)
    assert all(torch.equal(probe[key], again[key]) for key in probe)
    model(**probe).logits.square().sum().backward()
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_pefts_own_adapters_are_saved_and_loaded(build: Build, prompts: Prompts, tmp_path: Path) -> None:
    inputs = prompts(1, 9, (4, 6))
    settings = PeftConfig(r=4, lora_alpha=8, target_modules="|".join(LORA_TARGETS))
    wrapped = get_peft_model(build(), settings).eval()
    plain_BTV = wrapped(**inputs).logits
    randomise(wrapped)
    expected_BTV = wrapped(**inputs).logits
    assert (expected_BTV - plain_BTV).abs().max() > 0.05
    wrapped.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits, expected_BTV)
