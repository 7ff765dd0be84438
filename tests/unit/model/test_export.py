"""An exported directory gives the model back, to EchoRay and to transformers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor

from echoray.config import LoraConfig
from echoray.data.batch import grid_of
from echoray.data.frames import model_picture
from echoray.errors import ModelLoadError
from echoray.model import export
from echoray.model.base import WEIGHTS
from echoray.model.export import export_model, load_exported
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import STAGES, apply_stage

Build = Callable[..., EchoVLMForConditionalGeneration]
Prompts = Callable[..., dict[str, Tensor]]
METADATA: dict[str, Any] = {
    "name": "echovlm-test",
    "image_size_px": 56,
    "image_layout": "dynamic",
    "system_prompt": {"en": "Drafts.", "zh": "草稿"},
    "lineage": {"checkpoint/one-12345678": {"steps": 3}},
    "training": [{"stage": "align", "steps": 3, "loss": 1.25, "trained_parameters": 1234}],
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (folder / "notes.txt").write_text("not a processor file")
    return folder


@pytest.fixture
def finetuned(build: Build, randomise_adapters: Callable[..., None]) -> Build:
    """Builds a model with adapters that change its output."""

    def make(mix: str) -> EchoVLMForConditionalGeneration:
        model = build(mix=mix)
        apply_stage(model, STAGES["finetune"], LoraConfig(rank=4, alpha=8, dropout=0.05), seed=1)
        randomise_adapters(model)
        return model.train()

    return make


@torch.no_grad()
@pytest.mark.parametrize("mix", ["scalar", "token"])
@pytest.mark.parametrize("shard_bytes", [None, 200_000])
def test_the_merged_directory_gives_the_logits_of_the_model_with_adapters(
    finetuned: Build,
    prompts: Prompts,
    base: Path,
    tmp_path: Path,
    mix: str,
    shard_bytes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs, out = finetuned(mix), prompts(1, 9, (4, 6)), tmp_path / "out"
    expected_BTV = model.eval()(**inputs).logits
    if shard_bytes:
        monkeypatch.setattr(export, "MAX_SHARD_BYTES", shard_bytes)
    export_model(model.train(), base, out, metadata=METADATA)
    loaded = load_exported(out)
    torch.testing.assert_close(loaded(**inputs).logits, expected_BTV, rtol=0, atol=1e-5)
    assert not loaded.training
    assert loaded.config.text_config.mix == mix
    assert (len(list(out.glob("*.safetensors"))) > 1) == bool(shard_bytes)
    assert not any("lora" in key for file in out.glob("*.safetensors") for key in load_file(file))
    assert {weight.dtype for weight in load_exported(out, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_the_directorys_own_processor_keeps_to_the_pixels_of_training(
    build: Build, base: Path, tmp_path: Path
) -> None:
    # As the published bases write it, in the older spelling.
    values = json.loads((WEIGHTS / "preprocessor_config.json").read_text())
    values |= {"min_pixels": 3136, "max_pixels": 12845056, "size": {"shortest_edge": 1, "longest_edge": 2}}
    (base / "preprocessor_config.json").write_text(json.dumps(values))
    export_model(build(), base, tmp_path / "out", metadata=METADATA | {"image_size_px": 168})
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    frame = np.random.default_rng(1).integers(30, 255, (480, 640, 3), dtype=np.uint8)
    picture = model_picture(frame, 168, "dynamic")
    for image in (Image.open(io.BytesIO(picture)), Image.fromarray(frame)):
        (grid,) = processor([image], return_tensors="pt")["image_grid_thw"].tolist()
        assert grid[1] * grid[2] <= (168 // 14) ** 2
        if image.size != (640, 480):
            assert tuple(grid) == grid_of(picture)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sides by the content's aspect in multiples of 28, at most 168 x 168 = 28224 pixels" in card


@pytest.mark.parametrize(
    "imports",
    [
        "import echoray; assert 'torch' not in sys.modules; import transformers",
        "import transformers; import echoray",
        "from transformers import AutoConfig, AutoTokenizer; import echoray",
        "from transformers import AutoModelForImageTextToText, AutoProcessor; import echoray.model",
    ],
)
def test_transformers_alone_loads_it_after_the_import(build: Build, tmp_path: Path, imports: str) -> None:
    export_model(build(), WEIGHTS, tmp_path / "out", metadata=METADATA)
    code = (
        f"import sys; {imports}\n"
        "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "assert type(config).__name__ == 'EchoVLMConfig'\n"
        "model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert type(model).__name__ == 'EchoVLMForConditionalGeneration'\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "assert set(model.get_experts_implementation().values()) == {'auto'}\n"
        "assert type(AutoProcessor.from_pretrained(sys.argv[1])).__name__ == 'Qwen2VLProcessor'\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_directory_holds_processor_files_metadata_and_the_warning(
    build: Build, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_model(build(), base, out, metadata=METADATA)
    assert (out / "tokenizer.json").read_text() == '{"a": 1}'
    assert (out / "chat_template.jinja").is_file()
    assert not (out / "notes.txt").exists()
    assert json.loads((out / export.METADATA_FILE).read_text()) == METADATA
    card = (out / "README.md").read_text()
    assert "not a medical device" in card
    assert "echovlm-test" in card and "checkpoint/one-12345678" in card


def test_a_damaged_directory_is_refused_by_name(build: Build, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(build(), base, out, metadata=METADATA)
    weights = load_file(out / "model.safetensors")
    key = next(key for key in weights if key.endswith("layers.0.mlp.router.weight"))
    router = weights.pop(key)
    for content, named in (
        (weights, "missing: model.language_model.layers.0.mlp.router.weight"),
        (weights | {key: router[:, :5].contiguous()}, "of another shape"),
        (weights | {key: router, "model.extra.weight": router.clone()}, "not known"),
    ):
        save_file(content, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelLoadError) as caught:
            load_exported(out)
        assert named in caught.value.message
    for folder in (tmp_path / "absent", base):
        with pytest.raises(ModelLoadError):
            load_exported(folder)
