"""The production engine: vLLM's AsyncLLM with EchoRay's plugin; all running requests share its batches."""

from __future__ import annotations

import asyncio
import io
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from echoray.config import ServeConfig
from echoray.errors import ServingError
from echoray.serve import vllm_plugin
from echoray.serve.engine import Delta, Prompt, Sampling
from echoray.serve.exported import ExportedModel

_CPU_KV_CACHE_BYTES = 1 << 30


class VllmEngine:
    """An exported or released EchoVLM directory on vLLM, on a GPU or (float32, eager) on a CPU."""

    def __init__(self, exported: ExportedModel, limits: ServeConfig) -> None:
        self._exported = exported
        self._limits = limits
        self._engine: AsyncLLM | None = None

    async def start(self) -> None:
        """Start the engine core and load the weights; ServingError where vLLM refuses."""
        vllm_plugin.register()
        arguments = AsyncEngineArgs(**self._arguments())
        try:
            # In a thread: this takes up to a minute, while Serve's event loop must answer health checks.
            self._engine = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
        except (RuntimeError, ValueError) as error:
            raise ServingError(
                f"vLLM did not start ({type(error).__name__}: {error})", hint="see the replica's log"
            ) from None

    async def stop(self) -> None:
        """Abort what runs and end the engine core."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    async def check_health(self) -> None:
        """ServingError once the engine core has died."""
        if self._engine is None:
            raise ServingError("vLLM is not started", hint="wait for /readyz")
        try:
            await self._engine.check_health()
        except EngineDeadError:
            raise ServingError("vLLM's engine core has died", hint="Serve restarts the replica") from None

    async def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncIterator[Delta]:
        """Yield the answer's pieces; closing the iterator aborts the request in vLLM."""
        if self._engine is None:
            raise ServingError("vLLM is not started", hint="wait for /readyz")
        (rendered,) = await self._engine.renderer.render_cmpl_async([_vllm_prompt(prompt)])
        # Clients may repeat a request id, vLLM's must be unique.
        outputs = self._engine.generate(
            rendered, _sampling_params(sampling), f"{request_id}-{uuid.uuid4().hex}"
        )
        num_tokens = 0
        try:
            async for output in outputs:
                piece = output.outputs[0]
                num_tokens += len(piece.token_ids)
                yield Delta(piece.text, num_tokens, piece.finish_reason)
        except (EngineDeadError, EngineGenerateError) as error:
            raise ServingError(f"decoding failed ({type(error).__name__})", hint="try again") from None
        finally:
            await outputs.aclose()

    def _arguments(self) -> dict[str, Any]:
        arguments = {
            "model": str(self._exported.folder),
            "max_model_len": self._exported.context_tokens,
            "max_num_seqs": self._limits.max_ongoing_requests,
            "limit_mm_per_prompt": {"image": self._limits.max_images, "video": 0},
            "generation_config": "vllm",  # decoding options come from the request alone
            "seed": 0,
            "disable_log_stats": True,
        }
        if torch.cuda.is_available():
            return arguments | {"dtype": "bfloat16"}
        # With the worker in a process of its own a CPU would only load everything once more.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        on_cpu = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES}
        return arguments | on_cpu


def _vllm_prompt(prompt: Prompt) -> dict[str, Any]:
    from PIL import Image

    images = [Image.open(io.BytesIO(one)) for one in prompt.images]
    return {"prompt": prompt.text, **({"multi_modal_data": {"image": images}} if images else {})}


def _sampling_params(sampling: Sampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop) or None,
        seed=sampling.seed,
        output_kind=RequestOutputKind.DELTA,
    )
