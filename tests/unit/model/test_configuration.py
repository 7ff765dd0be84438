"""The configuration: flat and nested layouts, refused values, registration with transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import echoray.model
from echoray.errors import ConfigError
from echoray.model.configuration import MOE_KEYS, EchoVLMConfig, EchoVLMTextConfig

MOE: dict[str, Any] = {
    "mix": "token",
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 96,
    "moe_layers": [0, 2],
    "initial_alpha": 0.25,
    "router_aux_loss_coef": 0.01,
    "aux_loss_form": "switch",
    "output_router_logits": True,
}
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    "values",
    [{**SIZES, **MOE}, {"text_config": SIZES, **MOE}, {"text_config": {**SIZES, **MOE}}],
    ids=["flat", "beside text_config", "nested"],
)
def test_moe_keys_reach_the_text_config_and_survive_a_file(values: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig

    assert set(MOE) == set(MOE_KEYS)
    EchoVLMConfig(**values).save_pretrained(tmp_path)
    found = AutoConfig.from_pretrained(tmp_path)
    assert type(found) is EchoVLMConfig
    assert {key: getattr(found.text_config, key) for key in MOE} == MOE
    assert found.text_config.hidden_size == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": "mean"},
        {"aux_loss_form": "none"},
        {"num_experts": -1},
        {"num_experts_per_tok": 0},
        {"num_experts_per_tok": 5},
        {"moe_layers": [3]},
        {"moe_layers": [-1]},
    ],
    ids=str,
)
def test_a_value_that_no_layer_can_have_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        EchoVLMTextConfig(**{**SIZES, **changes})


def test_no_experts_need_no_experts_per_token() -> None:
    assert EchoVLMTextConfig(**SIZES, num_experts=0).num_experts == 0
    assert (
        EchoVLMTextConfig(**SIZES, shared_expert_intermediate_size=None).shared_expert_intermediate_size == 0
    )


def test_registering_again_changes_nothing() -> None:
    from transformers import AutoModelForImageTextToText

    echoray.model.register()
    echoray.model.register()
    model_class = AutoModelForImageTextToText._model_mapping[EchoVLMConfig]
    assert model_class is echoray.model.EchoVLMForConditionalGeneration


def test_importing_echoray_alone_loads_no_framework() -> None:
    code = "import echoray, sys; sys.exit(bool({'torch', 'transformers', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
