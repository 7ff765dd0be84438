"""Pretrain the tiny base: a small Qwen2-VL that learns to describe generic synthetic pictures in two languages.

Recipe: random initialisation; every sample is one picture and a conversation about it (a caption, then three
questions), the loss is on the answers; AdamW, cosine schedule with warm-up; one process. Run
``python -m echoray.model.base.pretrain --out DIR``. The data are a function of the seed; weights may differ in the
last bits between processors, which is why the shipped ones are pinned by their digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echoray.model.base.captions import describe, draw, questions, sample_scene
from echoray.model.base.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)
PROMPTS = {"en": ("Describe this picture.", "What does the picture show?"), "zh": ("请描述这幅图。", "图中显示了什么?")}
NUM_QUESTIONS = 2
SIZES_PX = (112, 112, 140, 112, 168)


@dataclass(frozen=True)
class Sample:
    """One picture (H, W, 3) and the conversation about it: (question, answer) pairs."""

    image_HW3: np.ndarray
    turns: tuple[tuple[str, str], ...]


def make_sample(seed: int, index: int, size_px: int) -> Sample:
    """The sample of ``index``, the same wherever it is made."""
    rng = np.random.default_rng((seed, index))
    language = "en" if rng.random() < 0.65 else "zh"
    scene = sample_scene(rng)
    prompt = PROMPTS[language][int(rng.integers(2))]
    turns = [(prompt, describe(scene, language, rng))]
    turns += [questions(scene, language, rng) for _ in range(NUM_QUESTIONS)]
    return Sample(draw(scene, size_px, rng), tuple(turns))


def make_batch(seed: int, step: int, batch_size: int) -> list[Sample]:
    size_px = SIZES_PX[step % len(SIZES_PX)]
    return [make_sample(seed, step * batch_size + row, size_px) for row in range(batch_size)]


def build_config(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig

    token = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6,
            "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={"depth": 4, "embed_dim": 192, "hidden_size": 192, "num_heads": 6, "mlp_ratio": 4, "patch_size": 14,
                       "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip


def encode(samples: list[Sample], tokenizer: Any, images: Any) -> dict[str, Any]:
    """Token ids and labels (B, T) right-padded, patches (P, D) and grid (I, 3)."""
    import torch

    vision = images(images=[sample.image_HW3 for sample in samples], return_tensors="pt")
    num_pads = int(vision["image_grid_thw"][0].prod()) // 4
    rows = [_encode_turns(sample.turns, num_pads, tokenizer) for sample in samples]
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels_BT = torch.full((len(rows), width), -100)
    for row, (ids, labels) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(ids)] = torch.tensor(labels)
    mask_BT = torch.zeros_like(ids_BT)
    for row, (ids, _) in enumerate(rows):
        mask_BT[row, : len(ids)] = 1
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT, "mm_token_type_ids": (ids_BT == image_id).long(), **vision}


def _encode_turns(turns: tuple[tuple[str, str], ...], num_pads: int, tokenizer: Any) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    labels: list[int] = []
    for turn, (question, answer) in enumerate(turns):
        image = "<|vision_start|>" + "<|image_pad|>" * num_pads + "<|vision_end|>" if turn == 0 else ""
        given = tokenizer(f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
        learned = tokenizer(f"{answer}<|im_end|>").input_ids
        after = tokenizer("\n").input_ids
        ids += given + learned + after
        labels += [-100] * len(given) + learned + [-100] * len(after)
    return ids, labels


def batches(seed: int, steps: range, batch_size: int) -> Iterator[list[Sample]]:
    """Batches in order, drawn ahead by one background process."""
    with ProcessPoolExecutor(1) as pool:
        pending = [pool.submit(make_batch, seed, step, batch_size) for step in steps[:8]]
        for step in steps:
            if step + 8 < steps.stop:
                pending.append(pool.submit(make_batch, seed, step + 8, batch_size))
            yield pending.pop(0).result()


def answer_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Mean cross-entropy of the answer tokens; logits are computed only where a token is learned."""
    import torch

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden_BTH = model.model(**inputs).last_hidden_state[:, :-1]
    targets_BT = batch["labels"][:, 1:]
    learned_BT = targets_BT != -100
    logits_NV = model.lm_head(hidden_BTH[learned_BT])
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_BT[learned_BT])


def held_out_losses(model: Any, tokenizer: Any, images: Any, seed: int) -> dict[str, float]:
    """Loss on unseen pictures, and the same with the pictures of the batch exchanged."""
    import torch

    model.eval()
    batch = encode([make_sample(seed + 1, index, 168) for index in range(64)], tokenizer, images)
    with torch.no_grad():
        right = float(answer_loss(model, batch))
        num_patches = int(batch["image_grid_thw"][0].prod())
        batch["pixel_values"] = batch["pixel_values"].roll(num_patches, 0)
        wrong = float(answer_loss(model, batch))
    model.train()
    return {"right_pictures": round(right, 4), "exchanged_pictures": round(wrong, 4)}


def pretrain(out: Path, *, steps: int, seed: int, batch_size: int, learning_rate: float, save_every_s: float) -> None:
    """Train and write the base model's directory."""
    import torch
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, get_cosine_schedule_with_warmup
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.manual_seed(seed)
    train_tokenizer(seed, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=392 * 392)
    model = Qwen2VLForConditionalGeneration(build_config(tokenizer))
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.02, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 30, steps)
    began = saved = time.monotonic()
    running = 0.0
    for step, samples in enumerate(batches(seed, range(steps), batch_size), start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            loss = answer_loss(model, encode(samples, tokenizer, images))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running = loss.item() if step == 1 else 0.97 * running + 0.03 * loss.item()
        if step % 50 == 0:
            logger.info("step %d loss %.3f, %.1f samples/s", step, running, step * batch_size / (time.monotonic() - began))
        if step % 400 == 0 or step == steps:
            logger.info("held out %s", held_out_losses(model, tokenizer, images, seed))
        if time.monotonic() - saved > save_every_s or step == steps:
            save(model, tokenizer, images, out, {"seed": seed, "steps": step, "planned_steps": steps, "batch_size": batch_size, "learning_rate": learning_rate})
            saved = time.monotonic()

BF16 = os.environ.get("BF16") == "1"

def save(model, tokenizer, images, out, recipe):
    import torch, copy
    from transformers import Qwen2VLForConditionalGeneration
    m = copy.deepcopy(model).to(torch.bfloat16)
    m.save_pretrained(out); images.save_pretrained(out)
    recipe["held_out"] = held_out_losses(model, tokenizer, images, recipe["seed"])
    recipe["sha256"] = hashlib.sha256((out/"model.safetensors").read_bytes()).hexdigest()
    (out/"recipe.json").write_text(json.dumps(recipe, indent=1))

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(); parser.add_argument("--out", type=Path); parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16); parser.add_argument("--lr", type=float, default=1.5e-3); parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    import torch
    torch.set_num_threads(a.threads)
    pretrain(a.out, steps=a.steps, seed=20260101, batch_size=a.batch, learning_rate=a.lr, save_every_s=240)
