"""The dual-path layer against the paper's equations written out token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from echoray.model.dual_path import DualPathMLP
from echoray.model.modeling import EchoVLMForConditionalGeneration

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
IMPLEMENTATIONS = ("eager", "auto", "batched_mm", "grouped_mm")
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_experts_per_tok": 1},
    {"num_experts": 3, "num_experts_per_tok": 3},
    {"shared_expert_intermediate_size": 0},
]


def swiglu(x_H: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return down @ (nn.functional.silu(gate @ x_H) * (up @ x_H))


def written_out(block: DualPathMLP, x_H: Tensor, mix: str) -> Tensor:
    """She et al., EchoVLM, eq. 3 and 4 for one token; mix="token" is the released checkpoint's form."""
    f_E = block.router.weight @ x_H
    chosen = sorted(range(len(f_E)), key=lambda e: -f_E[e].item())[: block.router.num_experts_per_tok]
    over = chosen if mix == "scalar" else range(len(f_E))
    g = {e: f_E[e].exp() / sum(f_E[j].exp() for j in over) for e in chosen}
    routed_H = torch.zeros_like(x_H)
    for e in chosen:
        gate, up = block.experts.gate_up_proj[e].chunk(2)
        routed_H = routed_H + g[e] * swiglu(x_H, gate, up, block.experts.down_proj[e])
    ffn_H = swiglu(x_H, block.gate_proj.weight, block.up_proj.weight, block.down_proj.weight)
    shared_H = torch.zeros_like(x_H)
    if (s := block.shared_expert) is not None:
        shared_H = swiglu(x_H, s.gate_proj.weight, s.up_proj.weight, s.down_proj.weight)
    if mix == "scalar":
        alpha, lam = 1 / (1 + (-block.mix.alpha_logit).exp()), 1 / (1 + (-block.mix.lambda_logit).exp())
        return alpha * ffn_H + (1 - alpha) * (lam * shared_H + routed_H)
    c_2 = (block.mix.coefficient.weight @ x_H + block.mix.coefficient.bias).exp()
    moe_H = routed_H + shared_H / (1 + (-(block.mix.shared_gate.weight @ x_H)).exp())
    return (c_2[0] * moe_H + c_2[1] * ffn_H) / c_2.sum()


def random_block(build: Build, **changes: Any) -> DualPathMLP:
    block = build(**changes).model.language_model.layers[0].mlp
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from the symmetric values that training starts at
        for weight in block.mix.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7)
    return block


@pytest.mark.parametrize("mix", ["scalar", "token"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_the_layer_computes_the_equations(build: Build, mix: str, changes: dict[str, Any]) -> None:
    block = random_block(build, mix=mix, **changes)
    x_BTH = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(3))
    expected = torch.stack([written_out(block, x_H, mix) for x_H in x_BTH.reshape(-1, 64)])
    found = block(x_BTH)
    torch.testing.assert_close(found, expected.view_as(x_BTH), rtol=1e-5, atol=1e-6)
    # Both branches weigh in the comparison: neither is lost in the tolerance.
    ffn_BTH = block.down_proj(block.act_fn(block.gate_proj(x_BTH)) * block.up_proj(x_BTH))
    assert (found - ffn_BTH).abs().mean() > 0.05 * ffn_BTH.abs().mean()


@pytest.mark.parametrize("mix", ["scalar", "token"])
@pytest.mark.parametrize(
    ("implementation", "width", "num_tokens"),
    # "auto" chooses another backend each time.
    [*((one, 32, 33) for one in IMPLEMENTATIONS[1:]), ("auto", 256, 100), ("auto", 256, 300)],
)
def test_every_experts_implementation_gives_the_output_and_gradients_of_eager(
    build: Build, mix: str, implementation: str, width: int, num_tokens: int
) -> None:
    def run(which: str) -> tuple[Tensor, dict[str, Tensor]]:
        model = build(mix=mix, moe_intermediate_size=width)
        model.set_experts_implementation(which)
        block = model.model.language_model.layers[0].mlp
        assert block.experts.config._experts_implementation == which
        y_BTH = block(torch.randn(1, num_tokens, 64, generator=torch.Generator().manual_seed(2)))
        y_BTH.square().sum().backward()
        return y_BTH.detach(), {name: one.grad for name, one in block.named_parameters()}

    expected, expected_grads = run("eager")
    found, found_grads = run(implementation)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(grad is not None for grad in expected_grads.values())
    for name, expected_grad in expected_grads.items():
        assert (found_grads[name] - expected_grad).norm() <= 1e-5 * expected_grad.norm(), name


def lone_token(build: Build, implementation: str) -> tuple[DualPathMLP, Tensor]:
    """A layer and one token, which goes to one expert: the others have none."""
    model = build(num_experts_per_tok=1)
    model.set_experts_implementation(implementation)
    x_BTH = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(8))
    return model.model.language_model.layers[0].mlp, x_BTH


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_expert_without_tokens_is_no_special_case(build: Build, implementation: str) -> None:
    block, x_BTH = lone_token(build, implementation)
    torch.testing.assert_close(
        block(x_BTH)[0, 0], written_out(block, x_BTH[0, 0], "scalar"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_expert_without_tokens_gets_a_gradient_of_zeros(build: Build, implementation: str) -> None:
    """Not None: a rank whose tokens miss an expert must still take part in the sum over ranks."""
    block, x_BTH = lone_token(build, implementation)
    used = int(block.router(x_BTH[0])[0])
    block(x_BTH).square().sum().backward()
    for weight in block.experts.parameters():
        has_gradient_E = [bool(grad.any()) for grad in weight.grad]
        assert has_gradient_E == [expert == used for expert in range(4)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_as_near_to_float32_as_eager_is(build: Build, implementation: str) -> None:
    """Output and gradients, relative error below 1%: eager is off by 0.5%, batched_mm by almost 1%."""

    def run(which: str, dtype: torch.dtype) -> dict[str, Tensor]:
        model = build()
        model.set_experts_implementation(which)
        experts = model.model.language_model.layers[0].mlp.experts.to(torch.bfloat16).to(dtype)
        generator = torch.Generator().manual_seed(4)
        x_NH = torch.randn(48, 64, generator=generator).bfloat16().to(dtype).requires_grad_()
        index_NK = torch.rand(48, 4, generator=generator).topk(2).indices
        weight_NK = torch.rand(48, 2, generator=generator).bfloat16().to(dtype).requires_grad_()
        y_NH = experts(x_NH, index_NK, weight_NK)
        y_NH.backward(torch.randn(48, 64, generator=generator).to(dtype))
        grads = {name: one.grad for name, one in experts.named_parameters()}
        return {"y": y_NH, "x": x_NH.grad, "weight": weight_NK.grad, **grads}

    exact, found = run("eager", torch.float32), run(implementation, torch.bfloat16)
    assert {one.dtype for one in found.values()} == {torch.bfloat16}
    for name, expected in exact.items():
        assert (found[name].float() - expected).norm() < 0.01 * expected.norm(), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decoding_token_by_token_writes_what_eager_writes(
    build: Build, prompts: Prompts, implementation: str
) -> None:
    def write(which: str) -> list[int]:
        model = build()
        model.set_experts_implementation(which)
        out = model.generate(**prompts(1, 9, (4, 6)), max_new_tokens=8, do_sample=False)
        assert model.get_experts_implementation()["text_config"] == which
        return out[0].tolist()

    assert write(implementation) == write("eager")


def test_what_runs_when_nothing_is_asked_for(build: Build, tmp_path: Path) -> None:
    """A saved model asks for nothing, so plain transformers and vLLM can read it; ours then takes "auto"."""
    model = build()
    assert model.get_experts_implementation()["text_config"] == "auto"
    model.save_pretrained(tmp_path)
    assert "experts_implementation" not in (tmp_path / "config.json").read_text()
    loaded = EchoVLMForConditionalGeneration.from_pretrained(tmp_path)
    assert set(loaded.get_experts_implementation().values()) == {"auto"}
    with pytest.raises(ValueError, match="not supported"):
        EchoVLMForConditionalGeneration.from_pretrained(tmp_path, experts_implementation="looped")
    assert loaded.model.language_model.layers[0].mlp.experts.config is loaded.config.text_config


@torch.no_grad()
def test_no_experts_is_the_dense_base_exactly(build: Build, qwen_dir: Path, prompts: Prompts) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    base = Qwen2VLForConditionalGeneration.from_pretrained(qwen_dir).eval()
    inputs = prompts(1, 9, (4, 6))
    dense = build(num_experts=0)
    assert torch.equal(dense(**inputs).logits, base(**inputs).logits)
    assert dense.state_dict().keys() == base.state_dict().keys()
    out = dense(**inputs, output_router_logits=True)
    assert out.router_logits is None
    assert out.aux_loss is None


@torch.no_grad()
def test_experts_sit_in_the_named_layers_only(build: Build, prompts: Prompts) -> None:
    model = build(moe_layers=(1,))
    layers = model.model.language_model.layers
    assert [isinstance(layer.mlp, DualPathMLP) for layer in layers] == [False, True]
    assert len(model(**prompts(1, 9), output_router_logits=True).router_logits) == 1
