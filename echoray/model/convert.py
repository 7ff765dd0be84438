"""Convert a model directory between the released layout and ours, one output file after the other.

The output is planned from the headers; then each file is written from views of the mapped input, so that
memory does not grow with the model.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from echoray.errors import ModelLoadError, StorageError, UsageError
from echoray.model.configuration import EchoVLMConfig
from echoray.model.directory import HINT, fitting_plan, read_directory
from echoray.model.export import (
    MAX_SHARD_BYTES,
    METADATA_FILE,
    PROCESSOR_FILES,
    RESEARCH_NOTICE,
    copy_files,
)
from echoray.model.layout import Layout, plan_on_disk
from echoray.model.released import flat_config
from echoray.model.weights import INDEX_FILE, SINGLE_FILE, Planned, Weights, open_weights, write_weights
from echoray.storage import sync_folder
from echoray.types import Progress

_COPIED = (*PROCESSOR_FILES, "generation_config.json", METADATA_FILE)
_CARD = (
    """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [ultrasound, mixture-of-experts, research]
---
# {name}

EchoVLM (She et al.), converted by EchoRay from the publicly released layout.
The licence is that of the source.

"""
    + RESEARCH_NOTICE
    + """

- Mix: {mix}; routed experts per layer: {num_experts}, {num_experts_per_tok} per token

Load with `echoray.model.export.load_exported`.
"""
)
_OTHER: dict[Layout, Layout] = {"released": "echovlm", "echovlm": "released"}


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    layout: Layout
    num_tensors: int
    num_files: int
    num_bytes: int


def convert_model(
    source: Path,
    out: Path,
    *,
    to: Layout | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress = lambda step, done, total: None,
) -> Converted:
    """Write ``source`` to ``out`` in the layout ``to`` (default: the other one); the dtypes stay.

    ``out`` must not exist or be empty, and is there only once everything is written. A file is no larger than
    ``max_shard_bytes`` or its one tensor. Raises UsageError for a used ``out``, ModelLoadError for weights
    that are missing, not known or of another shape and for a model that the layout cannot hold, StorageError
    where ``out`` cannot be written.
    """
    read = read_directory(source)
    target = _target(source, read.layout, to)
    described = _configuration(read.config, target)
    out = _free(out)
    with open_weights(source, hint=HINT) as weights:
        plan = plan_on_disk(fitting_plan(weights, read.model), target)
        described |= _dtype(plan, target)
        shards = _shards(plan, max_shard_bytes)
        with _written_whole(out) as partial:
            copy_files(source, partial, _COPIED)
            _write_json(partial / "config.json", described)
            _write_shards(weights, shards, partial, progress)
            if target == "echovlm":
                (partial / "README.md").write_text(_card(source, read.config))
    return Converted(target, len(plan), len(shards), sum(one.info.num_bytes for one in plan.values()))


def _target(source: Path, layout: Layout, to: Layout | None) -> Layout:
    if layout not in _OTHER:
        raise ModelLoadError(f"{source}: a dense Qwen2-VL without experts", hint="name an EchoVLM directory")
    target = to or _OTHER[layout]
    if target == layout:
        raise ModelLoadError(f"{source}: is in the {layout} layout already", hint="copy it as it is")
    return target


def _configuration(config: EchoVLMConfig, layout: Layout) -> dict[str, object]:
    if layout == "released":
        return flat_config(config)
    values: dict[str, object] = config.to_diff_dict()  # as save_pretrained writes it
    return values | {"architectures": ["EchoVLMForConditionalGeneration"]}


def _dtype(plan: Mapping[str, Planned], layout: Layout) -> dict[str, object]:
    """config.json's entry, where all weights have one dtype; the released code reads the older key."""
    (dtype, *others) = {planned.info.dtype for planned in plan.values()}
    key = "torch_dtype" if layout == "released" else "dtype"
    return {} if others else {key: str(dtype).removeprefix("torch.")}


def _shards(plan: Mapping[str, Planned], max_bytes: int) -> list[dict[str, Planned]]:
    """Fill one file after the other, in the order of the names."""
    shards: list[dict[str, Planned]] = [{}]
    room = max_bytes
    for name in sorted(plan):
        size = plan[name].info.num_bytes
        if size > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = plan[name]
        room -= size
    return shards


def _write_shards(
    weights: Weights, shards: list[dict[str, Planned]], folder: Path, progress: Progress
) -> None:
    index: dict[str, str] = {}
    done, total = count(1), sum(map(len, shards))
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_weights(folder / file, shard, weights, lambda: progress("tensors written", next(done), total))
        index |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        size = sum(planned.info.num_bytes for shard in shards for planned in shard.values())
        content: dict[str, object] = {"metadata": {"total_size": size}, "weight_map": index}
        _write_json(folder / INDEX_FILE, content)


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _card(source: Path, config: EchoVLMConfig) -> str:
    text = config.text_config
    return _CARD.format(
        name=source.resolve().name,
        mix=text.mix,
        num_experts=text.num_experts,
        num_experts_per_tok=text.num_experts_per_tok,
    )


def _free(out: Path) -> Path:
    try:
        out = out.resolve()
        used = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    except OSError as error:
        raise _unwritable(out, error) from error
    if used:
        raise UsageError(f"{out}: is there already and not empty", hint="name a new folder")
    return out


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that becomes ``out`` when the block ends, and is removed where it fails.

    Only a killed process leaves it behind.
    """
    partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_folder(partial)
        partial.rename(out)  # replaces an empty folder, and fails where somebody else filled it meanwhile
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> StorageError:
    hint = "free space, or name a folder that can be written"
    return StorageError(f"{out}: cannot be written ({error})", hint=hint)
