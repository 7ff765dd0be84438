"""EchoVLM on transformers: Qwen2-VL with a dual-path MoE in its decoder layers (She et al., EchoVLM, eq. 1-3)."""


from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers import initialization as init
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLCausalLMOutputWithPast,
    Qwen2VLModel,
    Qwen2VLPreTrainedModel,
    Qwen2VLTextModel,
)

from echoray.model.configuration import EchoVLMConfig, EchoVLMTextConfig
from echoray.model.dual_path import DualPathMLP, Experts, ScalarMix
from echoray.model.router import Router, balancing_loss, dispatch_counts, record_router_logits


_FORWARD_INPUTS = frozenset(
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache pixel_values "
    "pixel_values_videos image_grid_thw video_grid_thw mm_token_type_ids logits_to_keep".split()
)


@dataclass
class EchoVLMOutput(Qwen2VLCausalLMOutputWithPast):
    """Qwen2-VL's output; with ``output_router_logits`` also the router logits per layer (N, E) and the loss of eq. 8.

    ``loss`` is the language-model loss alone; ``aux_loss`` is never part of inference.
    """

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class EchoVLMPreTrainedModel(Qwen2VLPreTrainedModel):
    """Initialisation of the parts that Qwen2-VL does not have."""

    config: EchoVLMConfig
    _can_record_outputs = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.get_text_config().initializer_range
        if isinstance(module, Router):
            init.normal_(module.weight, 0.0, std)
        elif isinstance(module, Experts):
            init.normal_(module.gate_up_proj, 0.0, std)
            init.normal_(module.down_proj, 0.0, std)
        elif isinstance(module, ScalarMix):
            alpha = torch.tensor(module.initial_alpha)
            init.constant_(module.alpha_logit, float(torch.logit(alpha)))
            init.constant_(module.lambda_logit, 0.0)


class EchoVLMTextModel(EchoVLMPreTrainedModel, Qwen2VLTextModel):
    """Qwen2-VL's language model with the dual-path block in ``moe_layers``."""

    config: EchoVLMTextConfig
    _can_record_outputs = Qwen2VLTextModel._can_record_outputs

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__(config)
        for index in moe_layer_indices(config):
            self.layers[index].mlp = DualPathMLP(config)
        self.post_init()


class EchoVLMModel(EchoVLMPreTrainedModel, Qwen2VLModel):
    """Vision tower, projector and language model."""

    def __init__(self, config: EchoVLMConfig) -> None:
        # Qwen2VLModel's own constructor would build a dense language model first.
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.language_model = EchoVLMTextModel._from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()


class EchoVLMForConditionalGeneration(EchoVLMPreTrainedModel, Qwen2VLForConditionalGeneration):
    """The whole model with its language-model head."""

    def __init__(self, config: EchoVLMConfig) -> None:
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.model = EchoVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    # generate() reads the parameter names, hence Qwen2-VL's own signature rather than **kwargs alone.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> EchoVLMOutput:
        """Qwen2-VL's forward; ``output_router_logits`` adds the logits and the balancing loss of unmasked tokens."""
        inputs = {name: value for name, value in locals().items() if name in _FORWARD_INPUTS} | kwargs
        text = self.config.text_config
        wanted = text.output_router_logits if output_router_logits is None else output_router_logits
        if not wanted or not moe_layer_indices(text):
            return EchoVLMOutput(**Qwen2VLForConditionalGeneration.forward(self, **inputs))
        with record_router_logits() as logits:
            output = EchoVLMOutput(**Qwen2VLForConditionalGeneration.forward(self, **inputs))
        mask_N = torch.ones_like(logits[0][:, 0]) if attention_mask is None else attention_mask.reshape(-1)
        output.router_logits = tuple(logits)
        output.aux_loss = balancing_loss(
            logits,
            mask_N,
            global_counts_LE=dispatch_counts(logits, text.num_experts_per_tok, mask_N),
            global_num_tokens=mask_N.sum(),
            form=text.aux_loss_form,
        )
        return output


def moe_layer_indices(config: EchoVLMTextConfig) -> tuple[int, ...]:
    """The decoder layers that hold experts, in order; empty for a dense model."""
    if not config.num_experts:
        return ()
    if config.moe_layers is None:
        return tuple(range(config.num_hidden_layers))
    return tuple(sorted(config.moe_layers))
