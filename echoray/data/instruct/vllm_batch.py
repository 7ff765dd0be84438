"""Batch inference by vLLM on this cluster, through ``ray.data.llm``; answers go into the same cache."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from echoray.config.instruct import VllmMember
from echoray.data.instruct.answers import Answer, AnswerCache, answer_schema, read_proposed
from echoray.data.instruct.ask import STEP
from echoray.data.instruct.assignment import Assignment
from echoray.data.streaming import streamed
from echoray.errors import ModelLoadError
from echoray.types import Progress

if TYPE_CHECKING:
    from ray.data import Dataset

# vLLM's CPU build would take nearly all of the machine's memory for its cache.
_ON_CPU = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}


def answer_by_vllm(assignment: Assignment, member: VllmMember, progress: Progress) -> None:
    """Have one member answer what is for it and has no answer yet.

    What is not of the asked form is asked again with another seed, ``answer_attempts`` times in all. The
    workers make the requests and keep the answers: nothing of either passes through this process.
    Raises ModelLoadError where vLLM or the model is not there.
    """
    done = 0
    for attempt in range(member.answer_attempts):
        transform = partial(_transform, assignment, member, attempt)
        left = 0
        for row in streamed(assignment.works, len(assignment.works), transform):
            left += not row["kept"]
            done += row["kept"]
            progress(STEP, done, None)
        if not left:
            return


def open_requests(
    assignment: Assignment, member: VllmMember, attempt: int, work: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The requests of one part of the studies for ``member`` that have no answer, as rows of a dataset."""
    cache, found = AnswerCache(assignment.store), []
    for one in assignment.asked_of(member, work["path"]):
        study, seed = one.request.study.study_hash, one.request.seed + attempt
        if cache.read(study, one.key) is None:
            asked = {"messages": one.messages, "parts": one.request.parts, "seed": seed}
            place = {"study_hash": study, "key": one.key, "attempt": attempt}
            found.append({**place, "asked": json.dumps(asked, ensure_ascii=False), "images": one.images})
    return found


def _transform(assignment: Assignment, member: VllmMember, attempt: int, works: Dataset) -> Dataset:
    try:
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    except ImportError:
        raise ModelLoadError(
            f"instruct member {member.name}: vLLM is not installed", hint="pip install 'echoray[vllm]'"
        ) from None
    settings = vLLMEngineProcessorConfig(
        model_source=member.model,
        engine_kwargs={
            "max_model_len": member.max_model_len,
            "tensor_parallel_size": max(1, member.gpus_per_replica),
            "limit_mm_per_prompt": {"image": member.max_images, "video": 0},
            **({} if member.gpus_per_replica else _ON_CPU),
            **member.engine,
        },
        concurrency=member.replicas,
        batch_size=member.batch_size,
        # A replica's own resources: without GPUs it is vLLM's CPU build.
        placement_group_config={"bundles": _bundles(member)},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    processor = build_processor(
        settings, preprocess=partial(_prompted, member), postprocess=partial(_kept, assignment, member)
    )
    requests: Dataset = works.flat_map(partial(open_requests, assignment, member, attempt))
    answered: Dataset = processor(requests)
    return answered


def _bundles(member: VllmMember) -> list[dict[str, float]]:
    if not member.gpus_per_replica:
        return [{"CPU": 1}]
    return [{"GPU": 1, "CPU": 1}] * member.gpus_per_replica


def _prompted(member: VllmMember, row: dict[str, Any]) -> dict[str, Any]:
    """A request as vLLM takes it: the prompt in the model's chat format, pictures, sampling parameters."""
    from PIL import Image

    asked = json.loads(row["asked"])
    pictures = [Image.open(io.BytesIO(one)).convert("RGB") for one in row["images"]]
    *before, last = asked["messages"]
    parts = [*({"type": "image"} for _ in pictures), {"type": "text", "text": last["content"]}]
    messages = [*before, {**last, "content": parts if pictures else last["content"]}]
    prompt = _chat_format(member.model).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    sampling: dict[str, Any] = {
        "temperature": member.temperature,
        "max_tokens": member.max_tokens,
    }
    if member.gpus_per_replica:  # the sampler of vLLM's CPU build takes no seed of a request
        sampling["seed"] = asked["seed"]
    if member.structured:
        sampling["structured_outputs"] = {"json": json.dumps(answer_schema(asked["parts"]))}
    seen = {"multimodal_data": {"image": pictures}} if pictures else {}
    return {"prompt": prompt, "sampling_params": sampling, **seen}


def _kept(assignment: Assignment, member: VllmMember, row: dict[str, Any]) -> dict[str, Any]:
    """Keep an answer of the asked form, or the last one; whether it was kept."""
    text, attempts = str(row["generated_text"]), int(row["attempt"]) + 1
    kept = read_proposed(text) is not None or attempts == member.answer_attempts
    if kept:
        seed = int(json.loads(row["asked"])["seed"])
        counts = (int(row["num_input_tokens"]), int(row["num_generated_tokens"]))
        answer = Answer(text, None, seed, attempts, *counts)
        AnswerCache(assignment.store).write(row["study_hash"], row["key"], answer)
    return {"kept": kept}


@lru_cache(maxsize=2)
def _chat_format(model: str) -> Any:
    """What knows the model's chat template."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{model}: no processor of a model is there ({type(error).__name__})",
            hint="name a directory with the model and its tokenizer, readable on every node",
        ) from None
