"""Checkpoints of a stage: what is saved while it runs, and the model that an artifact holds."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from echoray import artifacts
from echoray.config import RunConfig
from echoray.data.cursor import Cursor
from echoray.errors import ArtifactError
from echoray.model.base import resolve_base
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import STAGES, add_adapters, load_trained_state, trained_state
from echoray.model.upcycle import upcycle
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef

WEIGHTS = "model.safetensors"
STATE = "state.json"
METRICS = "metrics.jsonl"
_TAG = "engine"


def store_of(run: RunConfig) -> Store:
    """The store that holds the run's artifacts."""
    return open_store(run.workspace, endpoint_url=run.storage.endpoint_url, region=run.storage.region)


def save_progress(engine: Any, folder: Path, cursor: Cursor, metrics: list[dict[str, Any]], rank: int) -> None:
    """Write this rank's share of a resumable checkpoint (trained weights, optimizer, cursor, metrics so far)."""
    engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True)
    if rank == 0:
        (folder / STATE).write_text(json.dumps({"cursor": asdict(cursor), "metrics": metrics}))


def load_progress(engine: Any, folder: Path) -> tuple[Cursor, list[dict[str, Any]]]:
    """Restore engine, cursor and metrics from a checkpoint of the same number of workers."""
    loaded, _ = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    if loaded is None or not (folder / STATE).is_file():
        raise ArtifactError("the checkpoint to resume from is incomplete", hint="delete the run's folder below runs/")
    state = json.loads((folder / STATE).read_text())
    return Cursor(**state["cursor"]), state["metrics"]


def save_final(core: EchoVLMForConditionalGeneration, folder: Path, metrics: list[dict[str, Any]]) -> None:
    """Write what becomes the stage's artifact: trained weights (safetensors) and the metrics of every step."""
    from safetensors.torch import save_file

    state = {name: value.cpu().contiguous() for name, value in trained_state(core).items()}
    save_file(state, str(folder / WEIGHTS))
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in metrics))


def load_checkpoint(
    run: RunConfig, ref: ArtifactRef, *, dtype: torch.dtype = torch.float32
) -> EchoVLMForConditionalGeneration:
    """Rebuild the model of a stage: the upcycled base, then the trained weights of every stage up to ``ref``."""
    store = store_of(run)
    model = upcycle(resolve_base(run.model.base), run.model, seed=run.seed, dtype=dtype)
    apply_checkpoint(run, store, model, ref)
    return model.eval()


def apply_checkpoint(
    run: RunConfig, store: Store, model: EchoVLMForConditionalGeneration, ref: ArtifactRef
) -> None:
    """Put the trained weights of ``ref`` and of the stages before it into an upcycled model, in place."""
    from safetensors.torch import load_file

    manifest = artifacts.require(store, ref, made_by="echoray train align")
    for parent in manifest.parents:
        if parent.kind == "checkpoint":
            apply_checkpoint(run, store, model, parent)
    stage = STAGES[manifest.counts["stage"]]
    lora = run.train.finetune.lora
    if stage.lora and lora is not None:
        add_adapters(model, lora, seed=run.seed)
    load_trained_state(model, load_file(artifacts.fetch(store, ref) / WEIGHTS))


def checkpoint_folder() -> Path:
    """A new local folder for a checkpoint on its way to storage."""
    return Path(tempfile.mkdtemp(prefix="echoray-checkpoint-"))


def discard(folder: Path) -> None:
    """Remove a local checkpoint folder after it was handed over."""
    shutil.rmtree(folder, ignore_errors=True)
