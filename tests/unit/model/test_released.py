"""The released layout, against the recorded outputs of a small checkpoint in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from echoray.errors import ModelLoadError
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.released import load_released

GOLDEN = Path(__file__).parents[2] / "golden" / "released-layer-tiny"
EXACT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module", params=["auto", "eager", "batched_mm", "grouped_mm"])
def released(request: pytest.FixtureRequest) -> EchoVLMForConditionalGeneration:
    model = load_released(GOLDEN)
    model.set_experts_implementation(request.param)
    assert model.model.language_model.layers[0].mlp.experts.config._experts_implementation == request.param
    return model


def image_inputs(expected: dict[str, Tensor], num_tokens: int) -> dict[str, Tensor]:
    ids_BT = expected["input_ids"][:, :num_tokens]
    return {
        "input_ids": ids_BT,
        "attention_mask": expected["attention_mask"][:, :num_tokens],
        "mm_token_type_ids": (ids_BT == 6).int(),
        "pixel_values": expected["pixel_values"],
        "image_grid_thw": expected["image_grid_thw"],
    }


@torch.no_grad()
def test_image_prompt_gives_the_expected_values(
    released: EchoVLMForConditionalGeneration, expected: dict[str, Tensor]
) -> None:
    out = released(
        **image_inputs(expected, 30),
        labels=expected["labels"],
        output_router_logits=True,
        output_hidden_states=True,
    )
    found = {
        "logits": out.logits,
        "hidden_last": out.hidden_states[-1],
        "router_logits": torch.stack(out.router_logits),
        "loss": out.loss[None],
        "aux_loss": out.aux_loss[None],
    }
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


@torch.no_grad()
def test_text_prompt_gives_the_expected_logits(
    released: EchoVLMForConditionalGeneration, expected: dict[str, Tensor]
) -> None:
    logits_BTV = released(input_ids=expected["text_input_ids"]).logits
    torch.testing.assert_close(logits_BTV, expected["text_logits"], **EXACT)


def test_greedy_tokens_are_the_expected_ones(
    released: EchoVLMForConditionalGeneration, expected: dict[str, Tensor]
) -> None:
    text = released.generate(input_ids=expected["text_input_ids"], max_new_tokens=12, do_sample=False)
    # The prompt is the example without its last token, which ends the sequence.
    image = released.generate(**image_inputs(expected, 29), max_new_tokens=12, do_sample=False)
    assert text.tolist() == expected["text_greedy"].tolist()
    assert image.tolist() == expected["image_greedy"].tolist()


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    misfit: tuple[Path, str],
) -> None:
    folder, named = misfit
    with pytest.raises(ModelLoadError) as caught:
        load_released(folder)
    assert named in caught.value.message
