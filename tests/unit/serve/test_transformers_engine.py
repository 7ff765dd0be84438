"""The decoding thread: stopping, a model that does not load."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from echoray.errors import ModelLoadError, ServingError
from echoray.model.base import WEIGHTS
from echoray.serve.engine import Delta, Prompt, Sampling
from echoray.serve.exported import read_exported
from echoray.serve.transformers_engine import TransformersEngine

PROMPT = Prompt("<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n", (), 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base under EchoVLM's name: without experts it is the same model."""
    target = tmp_path_factory.mktemp("model") / "dense"
    shutil.copytree(WEIGHTS, target)
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= {"num_experts": 0, "model_type": "echovlm_text"}
    config |= {"model_type": "echovlm", "architectures": ["EchoVLMForConditionalGeneration"]}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_stopping_ends_running_and_waiting_requests_with_an_error(folder: Path) -> None:
    async def answers() -> list[object]:
        engine = TransformersEngine(read_exported(folder))
        await engine.start()
        await engine.check_health()

        async def ask() -> list[Delta]:
            # No end token stops these: sampled at a high temperature they go on.
            sampling = Sampling(max_tokens=8000, temperature=2.0, seed=0)
            return [delta async for delta in engine.generate(PROMPT, sampling, "id")]

        tasks = [asyncio.create_task(ask()) for _ in range(2)]
        await asyncio.sleep(0.3)
        await engine.stop()
        with pytest.raises(ServingError, match="has ended"):
            await engine.check_health()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    found = asyncio.run(asyncio.wait_for(answers(), 60))
    assert [type(one) for one in found] == [ServingError, ServingError]


def test_a_directory_whose_weights_do_not_fit_fails_to_start(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_experts"] = 4
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"weights \d+ missing: .*mlp\.router"):
        asyncio.run(TransformersEngine(read_exported(tmp_path / "broken")).start())


def test_metadata_is_read_and_has_defaults(folder: Path, tmp_path: Path) -> None:
    assert read_exported(folder).version == "unversioned"
    shutil.copytree(folder, tmp_path / "model")
    metadata = {"version": "abc", "image_size_px": 168, "system_prompt": {"en": "Hi."}}
    (tmp_path / "model" / "echoray.json").write_text(json.dumps(metadata))
    exported = read_exported(tmp_path / "model")
    assert (exported.version, exported.image_size_px, exported.system_prompt) == ("abc", 168, {"en": "Hi."})
    # Named by no directory made before there was a choice.
    assert (exported.image_layout, read_exported(folder).image_layout) == ("square", "dynamic")
    assert exported.context_tokens == 8192
    (tmp_path / "model" / "echoray.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"echoray\.json: not readable"):
        read_exported(tmp_path / "model")
