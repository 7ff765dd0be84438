"""The shipped tiny base and the script that makes it."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from echoray.errors import ModelLoadError
from echoray.model.base import WEIGHTS, pretrain, resolve_base, verify
from echoray.model.base.captions import describe, draw, questions, sample_scene
from echoray.model.base.pretrain import KINDS, Recipe, make_batch, make_sample
from echoray.model.base.tokenizer import SPECIAL_TOKENS

MEDICAL = re.compile(
    r"ultraso|sonogra|echo(?!es\b)|lesion|liver|kidney|thyroid|carotid|uter|ovar|heart|breast|cyst|nodule|"
    r"超声|回声|病灶|肝|肾|甲状腺|动脉|子宫|卵巢|心脏|乳|囊肿|结节",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return load_file(WEIGHTS / "model.safetensors")


def test_the_base_is_of_the_promised_size_and_under_its_digest(state: dict[str, Tensor]) -> None:
    verify(WEIGHTS)
    assert resolve_base("embedded") == WEIGHTS
    assert 5e6 < sum(tensor.numel() for tensor in state.values()) < 15e6
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 30e6


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(WEIGHTS, tmp_path / "base"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match="sha256"):
        verify(folder)


def test_every_token_can_be_written_by_a_frozen_vocabulary(state: dict[str, Tensor]) -> None:
    """Stage 1 trains no embedding: some hidden state must make each token likely, or nothing is learned."""
    embedding_VH = state["model.embed_tokens.weight"].float()
    gain_H = state["model.norm.weight"].float()
    target_N = torch.tensor(np.random.default_rng(0).choice(5106 - 256, 400, replace=False)) + 256
    free_NH = torch.randn(len(target_N), len(gain_H), generator=torch.Generator().manual_seed(0))
    free_NH.requires_grad_()
    optimizer = torch.optim.Adam([free_NH], lr=0.3)
    for _ in range(120):
        hidden_NH = functional.normalize(free_NH, dim=1) * len(gain_H) ** 0.5 * gain_H
        loss_N = functional.cross_entropy(hidden_NH @ embedding_VH.T, target_N, reduction="none")
        optimizer.zero_grad()
        loss_N.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss_N.mean() < 0.2
    assert loss_N.quantile(0.95) < 0.7


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = _tokenizer()
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS)


def test_qwen2s_special_tokens_are_single_tokens_at_the_end_of_the_vocabulary() -> None:
    tokenizer = _tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_it_saw_shows_or_names_ultrasound(language: Literal["en", "zh"]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        scene = sample_scene(rng)
        text = describe(scene, language, rng) + " ".join(questions(scene, language, rng))
        assert not MEDICAL.search(text), text


def test_samples_depend_on_seed_and_index_and_batches_have_one_picture_size() -> None:
    first, again = make_sample(3, 8, 0), make_sample(3, 8, 0)
    assert first.turns == again.turns and (first.image_HW3 == again.image_HW3).all()
    assert make_sample(3, 9, 0).turns != first.turns
    for step, (size_px, language, with_prose) in enumerate(KINDS):
        batch = make_batch(3, step, 3)
        assert {sample.image_HW3.shape for sample in batch} == {(size_px, size_px, 3)}
        assert {len(sample.turns) for sample in batch} == {4 if with_prose else 3}
        assert all(bool(re.search("[\u4e00-\u9fff]", one.turns[0][1])) == (language == "zh") for one in batch)


def test_a_caption_says_what_is_drawn() -> None:
    rng = np.random.default_rng(5)
    scene = next(one for one in iter(lambda: sample_scene(rng), None) if len(one.things) == 1)
    thing = scene.things[0]
    caption = describe(scene, "en", rng)
    assert all(
        word in caption for word in (thing.shape, thing.tone, thing.size, f"{thing.row} {thing.column}")
    )
    with_thing, without = (
        draw(one, 112, np.random.default_rng(0)) for one in (scene, replace(scene, things=()))
    )
    changed_HW = (with_thing != without).any(axis=2)
    row, column = round(thing.y * 112), round(thing.x * 112)
    assert changed_HW[row - 12 : row + 12, column - 12 : column + 12].any()


def test_an_interrupted_pretraining_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_tokenizer(seed: int, out: Path) -> None:  # training it takes longer than this test
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(WEIGHTS / name, out / name)

    monkeypatch.setattr(pretrain, "train_tokenizer", copy_tokenizer)
    recipe = Recipe(steps=3, batch_size=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    pretrain.pretrain(whole, recipe)
    first = pretrain.Pretraining(parts, recipe)
    first.take_step(make_batch(recipe.seed, 0, recipe.batch_size))
    first.keep()
    pretrain.pretrain(parts, recipe)
    assert json.loads((whole / "recipe.json").read_text()) == json.loads((parts / "recipe.json").read_text())
    assert not (parts / pretrain.STATE).exists()
    verify(parts)
