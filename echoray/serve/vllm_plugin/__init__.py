"""EchoVLM for vLLM, found through the ``vllm.general_plugins`` entry point."""

from __future__ import annotations

import echoray.model
from echoray.model.layout import RELEASED_ARCHITECTURE

ARCHITECTURES = ("EchoVLMForConditionalGeneration", RELEASED_ARCHITECTURE)
_IMPLEMENTATION = "echoray.serve.vllm_plugin.model:EchoVLMForConditionalGeneration"


def register() -> None:
    """Make vLLM know exported and released EchoVLM directories.

    vLLM calls this in each of its processes, also more than once; it must not touch an accelerator.
    """
    from vllm import ModelRegistry

    echoray.model.register()
    for architecture in ARCHITECTURES:
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, _IMPLEMENTATION)
