"""What a stage refuses to train on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echoray import artifacts
from echoray.config import RunConfig
from echoray.errors import ArtifactError
from echoray.storage import store_of
from echoray.train import train_stage
from echoray.types import ArtifactRef


def test_training_refuses_shards_without_a_passing_audit(
    tiny_run: RunConfig, tiny_shards: ArtifactRef
) -> None:
    store = store_of(tiny_run)
    content = {"train/part-00000.parquet": store.read_bytes(f"{tiny_shards.path}/train/part-00000.parquet")}

    def shards(name: str, parents: list[ArtifactRef]) -> ArtifactRef:
        ref = artifacts.plan("shards", name, config={}, parents=parents)
        for file, data in content.items():
            artifacts.write_file(store, ref.path, file, data)
        artifacts.seal(store, ref, config={}, parents=parents)
        return ref

    unaudited = artifacts.plan("studies", "unaudited", config={})
    artifacts.seal(store, unaudited, config={})
    for name, parents, told in [
        ("orphan", [], "names no studies"),
        ("unaudited", [unaudited], "audit.json is missing"),
        ("gone", [replace(unaudited, digest="0" * 64)], "not there or not finished"),
    ]:
        ref = shards(name, parents)
        with pytest.raises(ArtifactError, match=told):
            train_stage(tiny_run, "align", shards=ref, parent=None, progress=lambda *_: None)
