"""EchoVLM in vLLM: vLLM's own Qwen2-VL vision tower, and its Qwen2 with dual-path layers.

Reads the directories that EchoRay exports (both mixes) and the released checkpoint's layout.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.fusion.mm_input_norm import build_mm_input_norm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM, Qwen2Model
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VisionTransformer,
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.model_executor.models.utils import PPMissingLayer, WeightsMapper, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from echoray.model.layout import TO_OURS
from echoray.serve.vllm_plugin.dual_path import EchoVLMDecoderLayer, text_config

# The released layout's names become those of an exported directory; lambda of eq. 3 gates the shared expert.
_NAMES = WeightsMapper(
    orig_to_new_regex={**dict(TO_OURS), re.compile(r"\.mix\.lambda_logit$"): ".mix.shared_gate.logit"}
)
# Only the dense and the shared expert's projections are stacked: FusedMoE loads the routed experts itself.
_STACKED = WeightsMapper(
    orig_to_new_stacked={
        ".q_proj": (".qkv_proj", "q"),
        ".k_proj": (".qkv_proj", "k"),
        ".v_proj": (".qkv_proj", "v"),
        ".mlp.gate_proj": (".mlp.gate_up_proj", 0),
        ".mlp.up_proj": (".mlp.gate_up_proj", 1),
        ".shared_expert.gate_proj": (".shared_expert.gate_up_proj", 0),
        ".shared_expert.up_proj": (".shared_expert.gate_up_proj", 1),
    }
)


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class EchoVLMTextModel(Qwen2Model):
    """Qwen2 with dual-path decoder layers."""

    hf_to_vllm_mapper = _STACKED

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=EchoVLMDecoderLayer)


class EchoVLMForCausalLM(Qwen2ForCausalLM):
    """The language model with its head."""

    hf_to_vllm_mapper = _STACKED

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        nn.Module.__init__(self)  # Qwen2ForCausalLM would build a dense model first
        whole = vllm_config.model_config.hf_config
        self.config = text_config(whole)
        self.quant_config = vllm_config.quant_config
        self.model = EchoVLMTextModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = self._head(whole.tie_word_embeddings, prefix)
        self.logits_processor = LogitsProcessor(self.config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def _head(self, tied: bool, prefix: str) -> nn.Module:
        if not get_pp_group().is_last_rank:
            return PPMissingLayer()
        head = ParallelLMHead(
            self.config.vocab_size,
            self.config.hidden_size,
            quant_config=self.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        # transformers 5 keeps this key at the top level, where Qwen2ForCausalLM does not look.
        return head.tie_weights(self.model.embed_tokens) if tied else head


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLMultiModalProcessor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class EchoVLMForConditionalGeneration(Qwen2VLForConditionalGeneration):
    """The whole model."""

    hf_to_vllm_mapper = _NAMES | Qwen2VLForConditionalGeneration.hf_to_vllm_mapper
    packed_modules_mapping = {  # noqa: RUF012  (vLLM reads a class attribute)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        nn.Module.__init__(self)  # the parent would build a plain Qwen2 first: twice the memory
        self.model_config = vllm_config.model_config
        self.config = self.model_config.hf_config
        self.multimodal_config = self.model_config.get_multimodal_config()
        self.use_data_parallel = self.multimodal_config.mm_encoder_tp_mode == "data"
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.visual = Qwen2VisionTransformer(
                self.config.vision_config,
                quant_config=vllm_config.quant_config,
                input_norm=build_mm_input_norm(self.model_config),
                prefix=maybe_prefix(prefix, "visual"),
            )
        with self._mark_language_model(vllm_config):
            self.language_model = EchoVLMForCausalLM(
                vllm_config=vllm_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
