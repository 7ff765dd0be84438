"""Build a replica's service from its settings."""

from __future__ import annotations

import os

from echoray.errors import ServingError
from echoray.serve.auth import ApiKeys
from echoray.serve.engine import Engine
from echoray.serve.exported import ExportedModel, read_exported
from echoray.serve.prompts import Prompter
from echoray.serve.service import ChatService
from echoray.serve.settings import EndpointSettings


async def start_service(settings: EndpointSettings, key_hashes: tuple[str, ...]) -> ChatService:
    """Load the model and return when it can answer; ModelLoadError or ServingError where it cannot."""
    exported = read_exported(settings.model_dir)
    prompter = Prompter(exported, settings.serve)
    engine = make_engine(settings, exported)
    await engine.start()
    return ChatService(
        engine,
        prompter,
        ApiKeys(key_hashes),
        settings.serve,
        exported,
        settings.model_version or exported.version,
    )


def make_engine(settings: EndpointSettings, exported: ExportedModel) -> Engine:
    """The configured engine, not started; ServingError where it is not installed."""
    if settings.serve.engine == "transformers":
        from echoray.serve.transformers_engine import TransformersEngine

        return TransformersEngine(exported)
    # vLLM would otherwise set up logging for the whole process, which closes Serve's log file.
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    try:
        from echoray.serve.vllm_engine import VllmEngine
    except ImportError as error:
        raise ServingError(
            f"serve.engine is vllm, which cannot be imported ({error.name})",
            hint="install the vllm extra, or set serve.engine to transformers",
        ) from None
    return VllmEngine(exported, settings.serve)
