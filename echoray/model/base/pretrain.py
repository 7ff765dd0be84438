"""Pretrain the tiny base: a small Qwen2-VL that describes generic synthetic pictures in two languages.

Recipe: random initialisation; every sample is one picture and a conversation (its caption, a question about
it, a list of words to repeat, in one of five a paragraph to write); the loss is on the answers;
AdamW, cosine schedule with warm-up; one process. Run ``python -m echoray.model.base.pretrain --out DIR``; the
same command goes on after an interruption. The data are a function of the seed and of Python's version (whose
documentation is the prose); weights may differ in the last bits between processors, which is why the shipped
ones are pinned by their digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echoray.model.base.captions import describe, draw, questions, sample_scene
from echoray.model.base.texts import continuation, repetition
from echoray.model.base.tokenizer import train_tokenizer
from echoray.types import Language

logger = logging.getLogger(__name__)

PROMPTS = {
    "en": ("Describe this picture.", "What does the picture show?"),
    "zh": ("请描述这幅图。", "图中显示了什么?"),
}
# By step, so that the samples of a batch are of about one length and every picture of one size.
KINDS: tuple[
    tuple[int, Language, bool], ...
] = (  # picture size in pixels, language, whether prose is written
    (112, "en", False),
    (112, "zh", False),
    (140, "en", True),
    (112, "zh", False),
    (168, "en", False),
)
HELD_OUT, HELD_OUT_KIND = 64, 4
AHEAD = 8  # batches drawn before they are needed
STATE = "pretrain-state.pt"


@dataclass(frozen=True)
class Sample:
    """One picture (H, W, 3) and the conversation about it: (question, answer) pairs."""

    image_HW3: NDArray[np.uint8]
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Recipe:
    """What decides the weights; written to recipe.json beside them."""

    steps: int = 2000
    seed: int = 20260101
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    bf16: bool = False


def make_sample(seed: int, index: int, kind: int) -> Sample:
    """The sample of ``index``, the same wherever it is made; ``kind`` is a place in KINDS."""
    rng = np.random.default_rng((seed, index))
    size_px, language, with_prose = KINDS[kind]
    scene = sample_scene(rng)
    prompt = PROMPTS[language][int(rng.integers(2))]
    turns = [(prompt, describe(scene, language, rng))]
    turns += [questions(scene, language, rng), repetition(language, rng)]
    if with_prose:
        turns.append(continuation(rng))
    return Sample(draw(scene, size_px, rng), tuple(turns))


def make_batch(seed: int, step: int, batch_size: int) -> list[Sample]:
    """The batch of optimizer step ``step``."""
    kind = step % len(KINDS)
    return [make_sample(seed, step * batch_size + row, kind) for row in range(batch_size)]


def build_config(tokenizer: Any) -> Any:
    """Qwen2-VL's architecture at 6.3 M parameters."""
    from transformers import Qwen2VLConfig

    token = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.04,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "embed_dim": 192,
            "hidden_size": 192,
            "num_heads": 6,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def encode(samples: Sequence[Sample], tokenizer: Any, images: Any) -> dict[str, Any]:
    """Token ids and labels (B, T) right-padded, patches (P, D) and grid (I, 3)."""
    import torch

    vision = images(images=[sample.image_HW3 for sample in samples], return_tensors="pt")
    num_pads = int(vision["image_grid_thw"][0].prod()) // 4
    rows = [_encode_turns(sample.turns, num_pads, tokenizer) for sample in samples]
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels_BT = torch.full((len(rows), width), -100)
    mask_BT = torch.zeros_like(ids_BT)
    for row, (ids, labels) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(ids)] = torch.tensor(labels)
        mask_BT[row, : len(ids)] = 1
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {
        "input_ids": ids_BT,
        "labels": labels_BT,
        "attention_mask": mask_BT,
        "mm_token_type_ids": (ids_BT == image_id).long(),
        **vision,
    }


def _encode_turns(
    turns: tuple[tuple[str, str], ...], num_pads: int, tokenizer: Any
) -> tuple[list[int], list[int]]:
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
        pending = [pool.submit(make_batch, seed, step, batch_size) for step in steps[:AHEAD]]
        for step in steps:
            if step + AHEAD < steps.stop:
                pending.append(pool.submit(make_batch, seed, step + AHEAD, batch_size))
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
    batch = encode(
        [make_sample(seed + 1, index, HELD_OUT_KIND) for index in range(HELD_OUT)], tokenizer, images
    )
    with torch.no_grad():
        right = float(answer_loss(model, batch))
        num_patches = int(batch["image_grid_thw"][0].prod())
        batch["pixel_values"] = batch["pixel_values"].roll(num_patches, 0)
        wrong = float(answer_loss(model, batch))
    model.train()
    return {"right_pictures": round(right, 4), "exchanged_pictures": round(wrong, 4)}


class Pretraining:
    """The model in training with its optimizer and schedule, and where it stands."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        import torch
        from transformers import (
            AutoTokenizer,
            Qwen2VLForConditionalGeneration,
            get_cosine_schedule_with_warmup,
        )
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        torch.manual_seed(recipe.seed)
        self.out, self.recipe = out, recipe
        train_tokenizer(recipe.seed, out)
        self.tokenizer = AutoTokenizer.from_pretrained(out)
        self.images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=392 * 392)
        self.model = Qwen2VLForConditionalGeneration(build_config(self.tokenizer))
        self.model.set_attn_implementation(
            {"text_config": "eager", "vision_config": "sdpa"}  # on CPUs faster for short rows
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.02,
            fused=True,
        )
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, recipe.steps // 30, recipe.steps)
        self.step = 0

    def resume(self) -> None:
        """Go on from an interrupted run of the same recipe in ``out``, where there is one."""
        import torch

        path = self.out / STATE
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            return
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        logger.info("going on after step %d", self.step)

    def keep(self) -> None:
        """Write what ``resume`` needs, atomically."""
        import torch

        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        partial = self.out / f"{STATE}.partial"
        torch.save({"recipe": asdict(self.recipe), "step": self.step, **parts}, partial)
        partial.replace(self.out / STATE)

    def take_step(self, samples: Sequence[Sample]) -> float:
        """One optimizer step; its loss."""
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            loss = answer_loss(self.model, encode(samples, self.tokenizer, self.images))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def held_out(self) -> dict[str, float]:
        """See ``held_out_losses``."""
        return held_out_losses(self.model, self.tokenizer, self.images, self.recipe.seed)

    def save(self) -> None:
        """Write the finished base in bfloat16 with its recipe and digest."""
        import torch

        held_out = self.held_out()
        self.model.to(torch.bfloat16).save_pretrained(self.out)
        self.images.save_pretrained(self.out)
        sha256 = hashlib.sha256((self.out / "model.safetensors").read_bytes()).hexdigest()
        content = {**asdict(self.recipe), "held_out": held_out, "sha256": sha256}
        (self.out / "recipe.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.out / STATE).unlink(missing_ok=True)


def pretrain(out: Path, recipe: Recipe, *, keep_every_s: float = 120.0) -> None:
    """Train and write the base model's directory; an interrupted run goes on where it was kept."""
    run = Pretraining(out, recipe)
    run.resume()
    began = kept = time.monotonic()
    first, running = run.step, 0.0
    for samples in batches(recipe.seed, range(first, recipe.steps), recipe.batch_size):
        loss = run.take_step(samples)
        running = loss if run.step == first + 1 else 0.97 * running + 0.03 * loss
        if run.step % 50 == 0:
            rate = (run.step - first) * recipe.batch_size / (time.monotonic() - began)
            logger.info("step %d/%d loss %.3f, %.1f samples/s", run.step, recipe.steps, running, rate)
        if run.step % 500 == 0:
            logger.info("held out %s", run.held_out())
        if time.monotonic() - kept > keep_every_s:
            run.keep()
            kept = time.monotonic()
    run.save()


def main() -> None:
    """``python -m echoray.model.base.pretrain``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Pretrain the tiny base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new model")
    for name, value in asdict(Recipe()).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help="forward and backward in bfloat16")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    chosen = vars(parser.parse_args())
    out, threads = chosen.pop("out"), chosen.pop("threads")
    import torch

    torch.set_num_threads(threads)
    pretrain(out, Recipe(**chosen))


if __name__ == "__main__":
    main()
