"""What trains in each stage, and the adapters that stage 2 adds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from echoray.config import LoraConfig
from echoray.errors import ModelLoadError
from echoray.model.merge import merge_adapters
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import (
    STAGES,
    Stage,
    add_adapters,
    apply_stage,
    load_trained_state,
    parameter_counts,
    trained_state,
)
from echoray.model.upcycle import is_moe

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)
ADAPTED = {
    "model.visual.blocks.0.attn.qkv",
    "model.visual.blocks.0.attn.proj",
    "model.visual.merger.mlp.0",
    "model.visual.merger.mlp.2",
    *(f"model.language_model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"),
}


def lora_modules(model: nn.Module) -> set[str]:
    return {name.split(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}


@pytest.mark.parametrize("mix", ["scalar", "token"])
@pytest.mark.parametrize("shared", [0, 64])
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_gradients_reach_what_the_stage_trains_and_nothing_else(
    build: Build, randomise_adapters: Callable[..., None], prompts: Prompts, stage: str, mix: str, shared: int
) -> None:
    model = build(mix=mix, shared_expert_intermediate_size=shared).train()
    apply_stage(model, STAGES[stage], LORA, seed=1)
    randomise_adapters(model)
    inputs = prompts(1, 16, (4, 6))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    got = {name for name, weight in model.named_parameters() if weight.grad is not None}
    expected = {name for name, _ in model.named_parameters() if is_moe(name) or ".lora_" in name}
    if not shared:  # then the shared expert's own weight has nothing to weigh
        expected = {name for name in expected if not name.endswith(("lambda_logit", "shared_gate.weight"))}
    assert got == expected
    assert all(weight.grad.any() for name, weight in model.named_parameters() if name in got)
    assert lora_modules(model) == (ADAPTED if stage == "finetune" else set())


def test_the_counts_of_the_parts_add_up(build: Build) -> None:
    model = build()
    apply_stage(model, STAGES["finetune"], LORA, seed=1)
    counts = parameter_counts(model)
    trainable = counts.pop("trainable")
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())
    assert trainable == counts["experts"] + counts["adapters"]
    # Per layer: router 4 x 64, experts 4 x 3 x 32 x 64, shared 3 x 64 x 64, alpha and lambda.
    assert counts["experts"] == 2 * (4 * 64 + 4 * 3 * 32 * 64 + 3 * 64 * 64 + 2)
    assert all(counts.values())


def test_a_pattern_that_matches_nothing_is_refused_by_name(build: Build) -> None:
    with pytest.raises(ModelLoadError, match=r"\*\.mlp\.gatekeeper\.\*"):
        apply_stage(build(), Stage("align", ("*.mlp.router.*", "*.mlp.gatekeeper.*")), None, seed=1)
    with pytest.raises(ModelLoadError, match="router"):
        apply_stage(build(num_experts=0), STAGES["align"], None, seed=1)
    with pytest.raises(ModelLoadError, match="LoRA settings"):
        apply_stage(build(), STAGES["finetune"], None, seed=1)
    with pytest.raises(ModelLoadError, match=r"visual"):
        add_adapters(build().model.language_model, LORA, seed=1)


@torch.no_grad()
def test_adapters_start_without_effect_and_merge_without_a_trace(
    build: Build, randomise_adapters: Callable[..., None], prompts: Prompts
) -> None:
    model, inputs = build(), prompts(1, 9, (4, 6))
    keys, plain_BTV = model.state_dict().keys(), model(**inputs).logits
    add_adapters(model, LORA, seed=1)
    assert torch.equal(model(**inputs).logits, plain_BTV)
    randomise_adapters(model)
    adapted_BTV = model(**inputs).logits
    assert (adapted_BTV - plain_BTV).abs().max() > 0.05
    merge_adapters(model)
    assert model.state_dict().keys() == keys
    torch.testing.assert_close(model(**inputs).logits, adapted_BTV, rtol=1e-5, atol=1e-5)


def test_adapters_take_the_models_dtype_and_their_start_from_the_seed(build: Build) -> None:
    def lora_a(seed: int, noise: int) -> list[Tensor]:
        model = build().to(torch.bfloat16)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        add_adapters(model, LORA, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        return [weight for name, weight in model.named_parameters() if ".lora_A." in name]

    first, again, other = lora_a(1, 5), lora_a(1, 6), lora_a(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@torch.no_grad()
def test_the_trained_state_is_all_that_a_checkpoint_needs(
    build: Build, randomise_adapters: Callable[..., None], prompts: Prompts
) -> None:
    def staged(seed: int) -> EchoVLMForConditionalGeneration:
        model = build(seed=seed)
        apply_stage(model, STAGES["finetune"], LORA, seed=seed)
        return model

    trained, fresh, inputs = staged(1), staged(2), prompts(1, 9, (4, 6))
    randomise_adapters(trained)
    state = trained_state(trained)
    assert (fresh(**inputs).logits - trained(**inputs).logits).abs().max() > 0.05
    load_trained_state(fresh, state)
    assert torch.equal(fresh(**inputs).logits, trained(**inputs).logits)
    key = next(iter(state))
    for wrong in ({"nothing.like.it": state[key]}, {key: torch.zeros(3)}):
        with pytest.raises(ModelLoadError, match="nothing.like.it" if key not in wrong else "other shape"):
            load_trained_state(fresh, wrong)
