"""EchoVLM on transformers: Qwen2-VL with a dual-path MoE in its decoder (She et al., EchoVLM, eq. 1-3).

Shape legend: B rows, T tokens per row, N = B*T, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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
from transformers.utils import can_return_tuple

from echoray.errors import InputDataError, ModelLoadError
from echoray.model.configuration import EchoVLMConfig, EchoVLMTextConfig
from echoray.model.dual_path import DualPathMLP, Experts, ScalarMix
from echoray.model.expert_backends import AUTO
from echoray.model.router import Router, balancing_loss, dispatch_counts, record_router_logits


@dataclass
class EchoVLMOutput(Qwen2VLCausalLMOutputWithPast):
    """Qwen2-VL's output; with ``output_router_logits`` also each layer's router logits (N, E) and eq. 8.

    ``loss`` is the language-model loss alone (eq. 5); ``aux_loss`` is not weighted by gamma.
    """

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class ExpertsSetting:
    """Lets a model's experts implementation be set, and chooses ``auto`` where nothing is asked for.

    transformers looks for its decorator in the text of the model's own module, and Experts is in another
    one; without this, grouped_mm is refused when asked for and silently replaced by eager when not.
    """

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """The name of the experts function for ``requested_experts``; ValueError where there is none."""
        # A PreTrainedModel comes after this class in every model that it is mixed into.
        known = super().get_correct_experts_implementation  # type: ignore[misc]
        return str(known(AUTO if requested_experts is None else requested_experts))


class EchoVLMVisionModel(ExpertsSetting, Qwen2VisionTransformerPretrainedModel):
    """Qwen2-VL's vision tower. It has no experts, but a setting of the whole model reaches it too."""


class EchoVLMPreTrainedModel(ExpertsSetting, Qwen2VLPreTrainedModel):
    """Initialisation of the parts that Qwen2-VL does not have."""

    # transformers reads the class from here or from an annotation that is no string.
    config_class = EchoVLMConfig
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

    config_class = EchoVLMTextConfig
    config: EchoVLMTextConfig
    _can_record_outputs = Qwen2VLTextModel._can_record_outputs

    def __init__(self, config: EchoVLMTextConfig) -> None:
        super().__init__(config)
        for index in moe_layer_indices(config):
            self.layers[index].mlp = DualPathMLP(config)
        self.post_init()

    @wraps(Qwen2VLTextModel.forward, assigned=(), updated=())
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Qwen2-VL's forward; rows of several examples are computed without a cache."""
        if attention_mask is None and past_key_values is None and _is_packed(position_ids):
            # With a cache transformers takes each row for one sequence, and its examples see each other.
            kwargs["use_cache"] = False
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, **kwargs)


class EchoVLMModel(EchoVLMPreTrainedModel, Qwen2VLModel):
    """Vision tower, projector and language model."""

    def __init__(self, config: EchoVLMConfig) -> None:
        # Qwen2VLModel's own constructor would build a dense language model first.
        Qwen2VLPreTrainedModel.__init__(self, config)
        self.visual = EchoVLMVisionModel._from_config(config.vision_config)
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

    # generate() looks at the names of forward's parameters: wraps() shows it Qwen2-VL's own.
    @can_return_tuple
    @wraps(Qwen2VLForConditionalGeneration.forward, assigned=(), updated=())
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> EchoVLMOutput:
        """Qwen2-VL's forward; ``output_router_logits`` adds the balancing loss of the unmasked tokens.

        Raises InputDataError for videos.

        Several examples in one row: ``position_ids`` (4, B, T), plane 0 counting from 0 within each example,
        planes 1 to 3 its M-RoPE positions, and no ``attention_mask``; then no example attends to another.
        """
        if kwargs.get("pixel_values_videos") is not None:
            raise InputDataError(
                "EchoVLM does not read videos", hint="give the frames of the clip as images, in their order"
            )
        text = self.config.text_config
        wanted = text.output_router_logits if output_router_logits is None else output_router_logits
        recording: AbstractContextManager[list[Tensor]] = (
            record_router_logits() if wanted else nullcontext([])
        )
        with recording as logits:
            dense = Qwen2VLForConditionalGeneration.forward(
                self, input_ids, attention_mask, *args, **{**kwargs, "return_dict": True}
            )
        output = EchoVLMOutput(**dense)
        if logits:
            output.router_logits = tuple(logits)
            output.aux_loss = _aux_loss(logits, attention_mask, text)
        return output


def _is_packed(position_ids: Tensor | None) -> bool:
    """Whether plane 0 of (4, B, T) positions begins again within a row."""
    if position_ids is None or position_ids.ndim != 3 or position_ids.shape[0] != 4:
        return False
    return bool((position_ids[0].diff(dim=-1) != 1).any())


def _aux_loss(logits: list[Tensor], mask_BT: Tensor | None, config: EchoVLMTextConfig) -> Tensor:
    """The balancing loss of one forward pass on its own."""
    mask_N = torch.ones_like(logits[0][:, 0]) if mask_BT is None else mask_BT.reshape(-1)
    return balancing_loss(
        logits,
        mask_N,
        global_counts_LE=dispatch_counts(logits, config.num_experts_per_tok, mask_N),
        global_num_tokens=mask_N.sum(),
        form=config.aux_loss_form,
    )


def moe_layer_indices(config: EchoVLMTextConfig) -> tuple[int, ...]:
    """The decoder layers that hold experts, in order; empty for a dense model."""
    if not config.num_experts:
        return ()
    if config.moe_layers is None:
        return tuple(range(config.num_hidden_layers))
    return tuple(sorted(set(config.moe_layers)))


def load_strictly(
    folder: Path,
    *,
    hint: str,
    may_lack: Callable[[str], bool] = lambda key: False,
    state: dict[str, Tensor] | None = None,
    **options: Any,
) -> EchoVLMForConditionalGeneration:
    """Load the safetensors of ``folder``, or ``state`` in their place, for evaluation.

    ``options`` go to from_pretrained. transformers only warns of weights that do not fit and leaves random
    ones in their place; here ModelLoadError names those missing (unless ``may_lack``), not known or of
    another shape.
    """
    if not folder.is_dir():  # transformers would take the name for one on a model hub
        raise ModelLoadError(f"{folder}: not a directory", hint=hint)
    try:
        model, info = EchoVLMForConditionalGeneration.from_pretrained(
            folder if state is None else None,
            state_dict=state,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{folder}: cannot be read ({error})", hint=hint) from None
    refuse_faults(
        folder,
        hint=hint,
        missing={key for key in info["missing_keys"] if not may_lack(key)},
        unknown=set(info["unexpected_keys"]),
        misshapen={key for key, *_ in info["mismatched_keys"]},
    )
    return model.eval()


def refuse_faults(
    folder: Path, *, hint: str, missing: set[str], unknown: set[str], misshapen: set[str]
) -> None:
    """Raise ModelLoadError where a weight is missing, not known or of another shape; the first are named."""
    faults = {
        "missing": sorted(missing),
        "not known": sorted(unknown),
        "of another shape": sorted(misshapen),
    }
    if any(faults.values()):
        summary = "; ".join(
            f"{len(keys)} {what}: {', '.join(keys[:5])}" for what, keys in faults.items() if keys
        )
        raise ModelLoadError(f"{folder}: weights {summary}", hint=hint)


def empty_model(config: EchoVLMConfig) -> EchoVLMForConditionalGeneration:
    """The model of ``config`` on torch's meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return EchoVLMForConditionalGeneration(config)
