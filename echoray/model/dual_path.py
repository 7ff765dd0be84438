"""The dual-path block: the frozen FFN beside shared and routed experts (She et al., EchoVLM, eq. 3).

Shape legend: B rows, T tokens, N = B*T, H hidden size, E experts, K experts per token, I expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2MLP

from echoray.model.configuration import EchoVLMTextConfig
from echoray.model.router import Router


@use_experts_implementation
class Experts(nn.Module):
    """The routed experts E_i, stacked; transformers' experts implementation picks how they are computed."""

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__()
        E, I, H = config.num_experts, config.moe_intermediate_size, config.hidden_size  # noqa: E741
        self.num_experts = E
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * I, H))
        self.down_proj = nn.Parameter(torch.empty(E, H, I))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x_NH: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """The reference: one expert after the other. (N, H)."""
        out_NH = torch.zeros_like(x_NH)
        for expert in range(self.num_experts):
            token, slot = (index_NK == expert).nonzero(as_tuple=True)
            gate, up = functional.linear(x_NH[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            y = functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            out_NH = out_NH.index_add(0, token, y * weight_NK[token, slot, None])
        return out_NH


class SharedExpert(Qwen2MLP):
    """The shared expert S: Qwen2's gated MLP at its own width."""

    def __init__(self, config: EchoVLMTextConfig) -> None:
        nn.Module.__init__(self)
        H, I = config.hidden_size, config.shared_expert_intermediate_size  # noqa: E741
        self.gate_proj = nn.Linear(H, I, bias=False)
        self.up_proj = nn.Linear(H, I, bias=False)
        self.down_proj = nn.Linear(I, H, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]


class ScalarMix(nn.Module):
    """eq. 3: a FFN + (1 - a) (l S + R), with a and l learnable scalars of the layer, a sigmoid each."""

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__()
        self.initial_alpha = config.initial_alpha
        self.alpha_logit = nn.Parameter(torch.empty(1))
        self.lambda_logit = nn.Parameter(torch.empty(1))

    def forward(self, x_NH: Tensor, ffn_NH: Tensor, routed_NH: Tensor, shared_NH: Tensor | None) -> Tensor:
        """(N, H)."""
        alpha = self.alpha_logit.sigmoid()
        moe_NH = routed_NH if shared_NH is None else self.lambda_logit.sigmoid() * shared_NH + routed_NH
        return alpha * ffn_NH + (1 - alpha) * moe_NH


class TokenMix(nn.Module):
    """The released checkpoint's mix: softmax(Linear(H, 2)(n)) weighs MoE (0) and FFN (1), a gate weighs S."""

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__()
        self.coefficient = nn.Linear(config.hidden_size, 2)
        self.shared_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x_NH: Tensor, ffn_NH: Tensor, routed_NH: Tensor, shared_NH: Tensor | None) -> Tensor:
        """(N, H)."""
        weight_N2 = self.coefficient(x_NH).softmax(-1)
        moe_NH = routed_NH if shared_NH is None else routed_NH + self.shared_gate(x_NH).sigmoid() * shared_NH
        return moe_NH * weight_N2[:, 0:1] + ffn_NH * weight_N2[:, 1:2]


class DualPathMLP(Qwen2MLP):
    """FFN and MoE mixed. The FFN keeps Qwen2-VL's parameter names, so a plain checkpoint loads as it is."""

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__(config)
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared_expert = SharedExpert(config) if config.shared_expert_intermediate_size else None
        self.mix = ScalarMix(config) if config.mix == "scalar" else TokenMix(config)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) normalised hidden states to the block's output, before the residual is added."""
        x_NH = x_BTH.reshape(-1, x_BTH.shape[-1])
        ffn_NH = super().forward(x_NH)
        index_NK, weight_NK = self.router(x_NH)
        routed_NH = self.experts(x_NH, index_NK, weight_NK)
        shared_NH = None if self.shared_expert is None else self.shared_expert(x_NH)
        return self.mix(x_NH, ffn_NH, routed_NH, shared_NH).view_as(x_BTH)
