"""The embedded engine: one model, one worker thread, one request at a time, tokens streamed as they come.

Shape legend: P patches, D values per patch, I images.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from echoray.data.batch import grid_of, patchify
from echoray.data.tokens import expand_images
from echoray.errors import EchoRayError, ModelLoadError, ServingError
from echoray.model.export import load_exported
from echoray.model.layout import RELEASED_ARCHITECTURE
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.released import load_released
from echoray.serve.engine import Delta, FinishReason, Prompt, Sampling
from echoray.serve.exported import ExportedModel
from echoray.serve.text_stream import TextStream

logger = logging.getLogger(__name__)

_END_OF_TURN = "<|im_end|>"
_STOPPING = ServingError("the endpoint is stopping", hint="try again")


@dataclass
class _Job:
    """One request on its way through the worker thread."""

    prompt: Prompt
    sampling: Sampling
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Queue[Delta | EchoRayError] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def send(self, item: Delta | EchoRayError) -> None:
        """Hand an item to the event loop, from the worker thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.answer.put_nowait, item)


class TransformersEngine:
    """An exported EchoVLM directory on transformers, for machines without vLLM."""

    def __init__(self, exported: ExportedModel) -> None:
        self._exported = exported
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._worker: threading.Thread | None = None

    async def start(self) -> None:
        """Load the model in the worker thread; ModelLoadError where the directory does not fit."""
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        arguments = (asyncio.get_running_loop(), loaded)
        self._worker = threading.Thread(target=self._work, args=arguments, name="decoder", daemon=True)
        self._worker.start()
        await loaded

    async def stop(self) -> None:
        """Cancel what runs, let the thread end."""
        self._stopping.set()
        self._jobs.put(None)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join)

    async def check_health(self) -> None:
        """ServingError unless the worker thread lives."""
        if self._worker is None or not self._worker.is_alive():
            raise ServingError(
                "the decoding thread has ended", hint="see the replica's log; Serve restarts it"
            )

    async def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncIterator[Delta]:
        """Yield the answer's pieces; closing the iterator cancels the decoding at the next token."""
        job = _Job(prompt, sampling, asyncio.get_running_loop())
        self._jobs.put(job)
        try:
            while True:
                item = await job.answer.get()
                if isinstance(item, EchoRayError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            job.cancelled.set()

    def _work(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[None]) -> None:
        try:
            decoder = _Decoder(self._exported)
        except Exception as error:  # start() waits for this, whatever it is
            loop.call_soon_threadsafe(loaded.set_exception, error)
            return
        loop.call_soon_threadsafe(loaded.set_result, None)
        while (job := self._jobs.get()) is not None:
            if job.cancelled.is_set():
                continue
            if self._stopping.is_set():
                job.send(_STOPPING)
                continue
            try:
                decoder.decode(job, self._stopping)
            except Exception as error:  # the thread must outlive any one request
                # The message may quote the input, so only the error's type is told.
                logger.error("decoding failed: %s", type(error).__name__)
                job.send(ServingError(f"decoding failed ({type(error).__name__})", hint="try again"))


class _Decoder:
    """The model and its tokenizer, used from one thread only."""

    def __init__(self, exported: ExportedModel) -> None:
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            # More threads than cores in sum over the replicas is slower, not faster.
            torch.set_num_threads(1)
        self._device = "cuda" if on_gpu else "cpu"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self._model = _load(exported, dtype).to(self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(exported.folder)
        self._end_id = self._tokenizer.convert_tokens_to_ids(_END_OF_TURN)
        if self._end_id is None:
            raise ModelLoadError(
                f"{exported.folder}: no {_END_OF_TURN} token", hint="use a Qwen2-VL tokenizer"
            )

    @torch.inference_mode()
    def decode(self, job: _Job, stopping: threading.Event) -> None:
        """Run one request to its end, its cancellation, or the engine's stop."""
        if job.sampling.seed is not None:
            torch.manual_seed(job.sampling.seed)
        relay = _Relay(job, TextStream(self._tokenizer, job.sampling.stop), self._end_id)
        # Rope offsets of the request before would be used where this one has no image.
        self._model.model.rope_deltas = None
        self._model.generate(
            **self._inputs(job.prompt),
            generation_config=self._generation_config(job.sampling),
            streamer=relay,
            stopping_criteria=[_Until(lambda: relay.ended or job.cancelled.is_set() or stopping.is_set())],
        )
        if stopping.is_set() and not relay.ended:
            job.send(_STOPPING)
        elif not job.cancelled.is_set():
            relay.finish()

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        sampled = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self._end_id,
            pad_token_id=self._end_id,
            **(sampled if sampling.temperature > 0 else {"do_sample": False}),
        )

    def _inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        grids = [grid_of(image) for image in prompt.images]
        text = expand_images(prompt.text, grids)
        ids_1T = torch.tensor([self._tokenizer(text).input_ids])
        inputs = {
            "input_ids": ids_1T,
            "attention_mask": torch.ones_like(ids_1T),
            "mm_token_type_ids": (ids_1T == self._model.config.image_token_id).long(),
        }
        if prompt.images:
            patches_PD = np.concatenate([patchify(image) for image in prompt.images])
            inputs["pixel_values"] = torch.from_numpy(patches_PD).to(self._model.dtype)
            inputs["image_grid_thw"] = torch.tensor(grids)
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}


class _Relay(BaseStreamer):
    """Receives token ids from generate() and sends the request's deltas."""

    def __init__(self, job: _Job, text: TextStream, end_id: int) -> None:
        self._job, self._text, self._end_id = job, text, end_id
        self._prompt_seen = False
        self.ended = False
        self._reason: FinishReason = "length"

    def put(self, value: torch.Tensor) -> None:
        """generate() hands over the prompt first, then one token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token_id in value.reshape(-1).tolist():
            if self.ended:  # generate() looks at the stopping criteria one token late
                return
            piece = self._text.push(token_id)
            if piece:
                self._job.send(Delta(piece, self._text.num_tokens))
            if token_id == self._end_id or self._text.stopped:
                self.ended, self._reason = True, "stop"

    def end(self) -> None:
        """Nothing is left to do: finish() sends the rest once it is clear that nobody cancelled."""

    def finish(self) -> None:
        """Send what was held back and why the answer ended."""
        self._job.send(Delta(self._text.finish(), self._text.num_tokens, self._reason))


class _Until(StoppingCriteria):
    """Stops generate() when ``condition`` holds."""

    def __init__(self, condition: Any) -> None:
        self._condition = condition

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """One flag per row."""
        return torch.full((input_ids.shape[0],), bool(self._condition()), device=input_ids.device)


def _load(exported: ExportedModel, dtype: torch.dtype) -> EchoVLMForConditionalGeneration:
    load = load_released if exported.architecture == RELEASED_ARCHITECTURE else load_exported
    return load(exported.folder, dtype=dtype)
