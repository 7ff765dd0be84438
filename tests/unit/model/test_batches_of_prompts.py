"""A prompt's answer does not depend on what else is in the batch, nor on the side of the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from echoray.errors import InputDataError
from echoray.model.modeling import EchoVLMForConditionalGeneration

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
IMAGE = 5


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One example (B = 1) of several: their tokens and images one after the other."""
    ids_BT = torch.cat([one["input_ids"] for one in parts], 1)
    images = [one for one in parts if "pixel_values" in one]
    out = {"input_ids": ids_BT, "mm_token_type_ids": (ids_BT == IMAGE).int()}
    if images:
        out |= {key: torch.cat([one[key] for one in images]) for key in ("pixel_values", "image_grid_thw")}
    return out


def batch(examples: Sequence[dict[str, Tensor]], side: str) -> dict[str, Tensor]:
    """All examples in one padded batch."""
    length = max(one["input_ids"].shape[1] for one in examples)
    rows, masks = [], []
    for one in examples:
        spare = length - one["input_ids"].shape[1]
        where = (spare, 0) if side == "left" else (0, spare)
        rows.append(pad(one["input_ids"], where, value=7))
        masks.append(pad(torch.ones_like(one["input_ids"]), where))
    ids_BT = torch.cat(rows)
    images = [one for one in examples if "pixel_values" in one]
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.cat(masks),
        "mm_token_type_ids": (ids_BT == IMAGE).int(),
        "pixel_values": torch.cat([one["pixel_values"] for one in images]),
        "image_grid_thw": torch.cat([one["image_grid_thw"] for one in images]),
    }


def mixed(prompts: Prompts) -> list[dict[str, Tensor]]:
    """No image, one, three of different sizes, and twenty."""
    grids = [(4, 6), (2, 2), (6, 4)]
    return [
        joined([prompts(1, 15)]),
        joined([prompts(2, 7, (4, 4))]),
        joined([prompts(3 + i, 5, grid) for i, grid in enumerate(grids)]),
        joined([prompts(10 + i, 4, (2, 4)) for i in range(20)]),
    ]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mix", ["scalar", "token"])
def test_logits_of_a_batch_of_mixed_image_counts_are_those_of_each_prompt_alone(
    build: Build, prompts: Prompts, mix: str, side: str
) -> None:
    model, examples = build(mix=mix), mixed(prompts)
    together = batch(examples, side)
    logits_BTV = model(**together).logits
    for row, one in enumerate(examples):
        found_TV = logits_BTV[row][together["attention_mask"][row].bool()]
        torch.testing.assert_close(found_TV, model(**one).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mix", ["scalar", "token"])
def test_greedy_answers_of_a_batch_are_those_of_each_prompt_alone(
    build: Build, prompts: Prompts, mix: str
) -> None:
    model, examples = build(mix=mix), mixed(prompts)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 7}
    together = batch(examples, "left")
    found = model.generate(**together, **options)[:, together["input_ids"].shape[1] :]
    alone = [model.generate(**one, **options)[0, one["input_ids"].shape[1] :] for one in examples]
    assert found.tolist() == [one.tolist() for one in alone]
    assert len({tuple(one.tolist()) for one in alone}) == len(examples)


def test_videos_are_refused_with_what_to_do_instead(build: Build, prompts: Prompts) -> None:
    inputs = prompts(1, 9)
    with pytest.raises(InputDataError, match="videos") as caught:
        build()(**inputs, pixel_values_videos=torch.zeros(16, 1176), video_grid_thw=torch.tensor([[1, 4, 4]]))
    assert "frames" in caught.value.hint
