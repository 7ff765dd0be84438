"""Fixtures for every test: a small random Qwen2-VL, a run that uses it, and tokenized examples of noise."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from echoray import artifacts
from echoray.config import RunConfig, load_run
from echoray.storage import Store
from echoray.types import TASKS, ArtifactRef, Conversation

IMAGE_PX = 56
NUM_EXAMPLES = 24

# A shell starts background jobs, and nohup its command, deaf to Ctrl-C; programs under test inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL with two decoder layers and the embedded base's tokenizer."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from echoray.model.base import WEIGHTS
    from echoray.model.export import PROCESSOR_FILES

    folder = tmp_path_factory.mktemp("base")
    values = json.loads((WEIGHTS / "config.json").read_text())
    small = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    text = {**values["text_config"], **small, "intermediate_size": 96, "initializer_range": 0.1}
    text.pop("layer_types", None)
    vision = {"depth": 1, "embed_dim": 64, "hidden_size": 64, "num_heads": 2}
    config = Qwen2VLConfig(
        **{
            **{key: value for key, value in values.items() if not key.endswith("_config")},
            "text_config": text,
            "vision_config": {**values["vision_config"], **vision},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        Qwen2VLForConditionalGeneration(config).float().save_pretrained(folder)
    for name in PROCESSOR_FILES:
        if (WEIGHTS / name).is_file():
            shutil.copyfile(WEIGHTS / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The tiny preset on the random base: twelve steps of eight examples a stage, one worker."""
    stage = {"epochs": 8, "max_steps": 12, "global_batch_size": 8, "warmup_ratio": 0.0}
    return load_run("tiny").merged(
        {
            "workspace": str(tmp_path_factory.mktemp("workspace")),
            "data": {"image_size_px": IMAGE_PX},
            "model": {
                "base": str(tiny_base),
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32,
                "initial_alpha": 0.5,
            },
            "train": {
                "num_workers": 1,
                "pack_length_tokens": 160,
                "balance_weight": 0.1,
                "align": {**stage, "tasks": list(TASKS), "learning_rate": 0.01},
                "finetune": {**stage, "learning_rate": 0.005},
            },
        }
    )


@pytest.fixture(scope="session")
def tiny_shards(tiny_run: RunConfig) -> ArtifactRef:
    """Training examples with one or two frames of noise, and answers of different lengths."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from echoray.data.batch import SCHEMA_KEY, SHARD_SCHEMA
    from echoray.data.tokens import ConversationTokenizer
    from echoray.storage import store_of

    rng = np.random.default_rng(3)
    tokenizer = ConversationTokenizer(Path(tiny_run.model.base), tiny_run.data.max_length_tokens)

    def png() -> bytes:
        target = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)).save(target, "PNG")
        return target.getvalue()

    rows = []
    for index in range(NUM_EXAMPLES):
        task, answer = TASKS[index % 3], "The liver is smooth. " * (1 + index % 4)
        one = Conversation(f"{index:04d}", f"{index // 3:04d}", "liver", task, "en", "Describe it.", answer)
        rows.append(tokenizer.encode(one, [png() for _ in range(1 + index % 2)]))

    def build(folder: Path) -> Mapping[str, int]:
        (folder / "train").mkdir()
        table = pa.Table.from_pylist(rows).replace_schema_metadata({SCHEMA_KEY: SHARD_SCHEMA})
        pq.write_table(table, folder / "train" / "part-00000.parquet")
        return {"train": len(rows)}

    config, parents = {"of": "noise"}, [audited_studies(store_of(tiny_run), tiny_run.name)]
    ref = artifacts.plan("shards", tiny_run.name, config=config, parents=parents)
    artifacts.produce(store_of(tiny_run), ref, build, config=config, parents=parents)
    return ref


def audited_studies(store: Store, name: str) -> ArtifactRef:
    """An artifact of no studies, with their leak audit."""
    from echoray.data.leaks import AUDIT_FILE, audit_record, audit_studies

    def build(folder: Path) -> Mapping[str, int]:
        (folder / AUDIT_FILE).write_text(json.dumps(audit_record(audit_studies([]), {})))
        return {}

    ref = artifacts.plan("studies", name, config={"of": "noise"})
    artifacts.produce(store, ref, build, config={"of": "noise"})
    return ref
