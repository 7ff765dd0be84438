"""Checkpoints: the state to go on from at any number of workers, and the weights of a finished stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from echoray import artifacts
from echoray.config import LoraConfig, RunConfig
from echoray.data.cursor import Cursor
from echoray.errors import ArtifactError
from echoray.model.modeling import EchoVLMForConditionalGeneration
from echoray.model.trainable import STAGES, add_adapters, load_trained_state, trained_state
from echoray.storage import store_of
from echoray.train.job import METRICS, SUMMARY, WEIGHTS
from echoray.types import ArtifactRef

STATE = "state.json"
_WEIGHT = "weight"
_START_AFRESH = "delete the run's folder below runs/ in the workspace to start the stage afresh"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def save_progress(
    engine: Any, folder: Path, cursor: Cursor, metrics: list[dict[str, Any]], *, rank: int, world_size: int
) -> None:
    """Write this rank's share of a resumable checkpoint; every rank must call it.

    Whole fp32 weights and moments by parameter name, so that any number of workers can go on from it;
    safetensors and JSON only.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    shares: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(_trained(engine.module.core)):
        # Collective: every rank takes part in putting each tensor together, one keeps it.
        whole = {_WEIGHT: safe_get_full_fp32_param(parameter)}
        whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
        if index % world_size == rank:
            shares |= {f"{key}:{name}": value.cpu().contiguous() for key, value in whole.items()}
    save_file(shares, str(folder / f"state-{rank:05d}.safetensors"))
    if rank == 0:
        state = {
            "step": engine.global_steps,
            "cursor": asdict(cursor),
            "files": world_size,
            "metrics": metrics,
            "schedule": engine.lr_scheduler.state_dict(),
        }
        (folder / STATE).write_text(json.dumps(state))


def load_progress(engine: Any, folder: Path) -> tuple[Cursor, list[dict[str, Any]]]:
    """Put a checkpoint's weights, moments and schedule into a fresh engine; cursor and metrics are returned.

    Raises ArtifactError where a file is missing.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    files = sorted(folder.glob("state-*.safetensors"))
    state = _read_state(folder)
    if len(files) != state["files"]:
        raise ArtifactError("the checkpoint to go on from is incomplete", hint=_START_AFRESH)
    _prepare_moments(engine, state["step"])
    parameters = dict(_trained(engine.module.core))
    for path in files:
        with safe_open(path, framework="pt") as file:
            for entry in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                key, _, name = entry.partition(":")
                parameter, value = parameters[name], file.get_tensor(entry).to(engine.device)
                if key == _WEIGHT:
                    parameter.data.copy_(value)
                    safe_set_full_fp32_param(parameter, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)
    engine.global_steps = state["step"]
    engine.lr_scheduler.load_state_dict(state["schedule"])
    for group, rate in zip(engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    return Cursor(**state["cursor"]), state["metrics"]


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        raise ArtifactError("the checkpoint to go on from is damaged", hint=_START_AFRESH) from None
    return state


def _prepare_moments(engine: Any, step: int) -> None:
    """Allocate AdamW's state as its first step would, so that it can be filled."""
    optimizer = engine.optimizer
    for partition in optimizer.single_partition_of_fp32_groups:
        optimizer.optimizer.state[partition] = {
            "step": torch.tensor(float(step)),
            **{key: torch.zeros_like(partition) for key in _MOMENTS},
        }
    optimizer._lazy_init_hp_params_optimizer_state()


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def save_final(
    core: EchoVLMForConditionalGeneration,
    folder: Path,
    summary: dict[str, Any],
    metrics: list[dict[str, Any]],
) -> None:
    """Write what becomes the stage's artifact: trained weights, a summary and the metrics of every step."""
    weights = {name: value.cpu().contiguous() for name, value in trained_state(core).items()}
    save_file(weights, str(folder / WEIGHTS))
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1, sort_keys=True))
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in metrics))


def apply_checkpoint(run: RunConfig, model: EchoVLMForConditionalGeneration, ref: ArtifactRef) -> None:
    """Put the trained weights of ``ref`` and of the stages before it into an upcycled model, in place."""
    from safetensors.torch import load_file

    store = store_of(run)
    manifest = artifacts.require(store, ref, made_by="echoray train align")
    for parent in manifest.parents:
        if parent.kind == ref.kind:
            apply_checkpoint(run, model, parent)
    settings = manifest.config["settings"]
    if STAGES[settings["plan"]].lora:
        add_adapters(model, LoraConfig.model_validate(settings["lora"]), seed=run.seed)
    load_trained_state(model, load_file(artifacts.fetch(store, ref) / WEIGHTS))
