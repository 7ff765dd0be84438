"""EchoVLM, native to transformers: importing this package registers it with the Auto classes."""

from __future__ import annotations

from echoray.model.configuration import EchoVLMConfig, EchoVLMTextConfig
from echoray.model.expert_backends import register_backends
from echoray.model.modeling import EchoVLMForConditionalGeneration, EchoVLMModel, EchoVLMTextModel


def register() -> None:
    """Make transformers know EchoVLM (Auto classes, key conversions) and its experts functions.

    Safe to call again.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    AutoConfig.register("echovlm", EchoVLMConfig, exist_ok=True)
    AutoConfig.register("echovlm_text", EchoVLMTextConfig, exist_ok=True)
    AutoModelForImageTextToText.register(EchoVLMConfig, EchoVLMForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(EchoVLMConfig, Qwen2VLProcessor, exist_ok=True)
    AutoImageProcessor.register(EchoVLMConfig, Qwen2VLImageProcessor, exist_ok=True)
    AutoTokenizer.register(EchoVLMConfig, fast_tokenizer_class=Qwen2TokenizerFast, exist_ok=True)
    # Conversions are looked up by class name; without these an old-layout checkpoint would silently leave the
    # language model at its random initialisation.
    for ours, theirs in (
        ("EchoVLMForConditionalGeneration", "Qwen2VLForConditionalGeneration"),
        ("EchoVLMModel", "Qwen2VLModel"),
    ):
        register_checkpoint_conversion_mapping(
            ours, get_checkpoint_conversion_mapping(theirs), overwrite=True
        )
    register_backends()


register()

__all__ = [
    "EchoVLMConfig",
    "EchoVLMForConditionalGeneration",
    "EchoVLMModel",
    "EchoVLMTextConfig",
    "EchoVLMTextModel",
    "register",
]
