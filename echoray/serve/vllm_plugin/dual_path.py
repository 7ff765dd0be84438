"""The dual-path feed-forward block of EchoVLM on vLLM's parallel layers (She et al., EchoVLM, eq. 3).

Shape legend: N tokens, H hidden size, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer, Qwen2MLP
from vllm.model_executor.models.qwen2_moe import Qwen2MoeMLP
from vllm.model_executor.models.utils import extract_layer_index

from echoray.model.configuration import MOE_KEYS, EchoVLMTextConfig
from echoray.model.modeling import moe_layer_indices


def text_config(config: Any) -> Any:
    """The language model's configuration with every MoE key set.

    A flat configuration of the released checkpoint arrives as a plain Qwen2-VL one: its MoE keys may stand at
    the top level, and its mix is always per token.
    """
    text = config.get_text_config()
    if isinstance(text, EchoVLMTextConfig):
        return text
    released = {"mix": "token", "moe_layers": None}
    for key in MOE_KEYS:
        if not hasattr(text, key):
            setattr(text, key, released.get(key, getattr(config, key, getattr(EchoVLMTextConfig, key))))
    return text


class ConstantGate(nn.Module):
    """lambda of eq. 3 in the form that vLLM's shared expert takes its gate: (logit, no bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.empty(1), requires_grad=False)

    def forward(self, x_NH: Tensor) -> tuple[Tensor, None]:
        """The same logit for every token."""
        return self.logit, None


class ScalarMix(nn.Module):
    """eq. 3: one share per layer."""

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        self.alpha_logit = nn.Parameter(torch.empty(1), requires_grad=False)
        self.shared_gate = ConstantGate()

    def forward(self, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the MoE and of the FFN."""
        alpha = self.alpha_logit.sigmoid()
        return 1 - alpha, alpha


class TokenMix(nn.Module):
    """The released checkpoint's mix: softmax(Linear(H, 2)(n)) weighs MoE (0) and FFN (1)."""

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.coefficient = ReplicatedLinear(hidden, 2, prefix=f"{prefix}.coefficient")
        self.shared_gate = ReplicatedLinear(hidden, 1, bias=False, prefix=f"{prefix}.shared_gate")

    def forward(self, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the MoE and of the FFN, each (N, 1)."""
        weight_N2 = self.coefficient(x_NH)[0].softmax(-1)
        return weight_N2[:, 0:1], weight_N2[:, 1:2]


class DualPathMLP(Qwen2MLP):
    """The dense FFN beside FusedMoE; parameter names are those of an exported directory."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=quant_config,
            prefix=prefix,
        )
        scalar = config.mix == "scalar"
        self.mix = (ScalarMix if scalar else TokenMix)(config, f"{prefix}.mix")
        self.router = ReplicatedLinear(
            config.hidden_size, config.num_experts, bias=False, prefix=f"{prefix}.router"
        )
        self.shared_expert = self._shared_expert(config, quant_config, prefix)
        self.experts = FusedMoEFactory(
            shared_experts=self.shared_expert,
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            renormalize=scalar or config.norm_topk_prob,
            quant_config=quant_config,
            prefix=f"{prefix}.experts",
        )

    def _shared_expert(self, config: Any, quant_config: Any, prefix: str) -> nn.Module | None:
        if not config.shared_expert_intermediate_size:
            return None
        return Qwen2MoeMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.shared_expert_intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=quant_config,
            reduce_results=False,  # FusedMoE reduces the sum of both over the tensor-parallel ranks
            expert_gate=self.mix.shared_gate,
            prefix=f"{prefix}.shared_expert",
        )

    def forward(self, x_NH: Tensor) -> Tensor:
        """(N, H) normalised hidden states to the block's output, before the residual is added."""
        # Both branches are already reduced over the tensor-parallel ranks, so mixing after that is exact.
        ffn_NH = super().forward(x_NH)
        moe_NH = self.experts(hidden_states=x_NH, router_logits=self.router(x_NH)[0])
        moe_share, ffn_share = self.mix(x_NH)
        return moe_NH * moe_share + ffn_NH * ffn_share


class EchoVLMDecoderLayer(Qwen2DecoderLayer):
    """Qwen2's decoder layer, dual-path where the configuration puts experts."""

    def __init__(
        self, config: Any, cache_config: Any = None, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__(config=config, cache_config=cache_config, quant_config=quant_config, prefix=prefix)
        if extract_layer_index(prefix) in moe_layer_indices(config):
            self.mlp = DualPathMLP(config, quant_config, f"{prefix}.mlp")
