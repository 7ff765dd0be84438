"""Write one merged model directory that transformers and vLLM load, and read it back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from echoray.model.merge import merge_adapters
from echoray.model.modeling import EchoVLMForConditionalGeneration, load_strictly

# Tokenizer and processor files, copied from the base as they are.
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
METADATA_FILE = "echoray.json"
_PIXEL_FILE = "preprocessor_config.json"
_MIN_PIXELS = 56 * 56  # Qwen2-VL's own lower limit
_IMAGES = {
    "dynamic": "sides by the content's aspect in multiples of 28, at most {0} x {0} = {1} pixels",
    "square": "{0} x {0} pixels, the content centred on black",
}
MAX_SHARD_BYTES = 5 * 1000**3

RESEARCH_NOTICE = """\
**Research software, not a medical device.** Generated reports are drafts for a clinician, who remains
responsible for every statement. Not validated for any clinical use."""
_CARD = (
    """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [ultrasound, mixture-of-experts, research]
---
# {name}

EchoVLM (She et al.): Qwen2-VL with a dual-path Mixture-of-Experts, trained with EchoRay.

"""
    + RESEARCH_NOTICE
    + """

- Mix: {mix}; routed experts per layer: {num_experts}, {num_experts_per_tok} per token
- Images in training: {images}

## Training

| Stage | Steps | Loss of the last step | Trained parameters |
|---|---|---|---|
{training}

## Data and lineage

{lineage}

## Figures

Load with `import echoray` and `AutoModelForImageTextToText.from_pretrained`. `echoray evaluate` makes
held-out figures from this directory; the registry records them with its version, and
`echoray model export --out FOLDER` writes them below. Overlap with reference reports is not clinical
correctness.
"""
)


def export_model(
    model: EchoVLMForConditionalGeneration, base: Path, out: Path, *, metadata: Mapping[str, Any]
) -> None:
    """Write weights (safetensors), the processor files of ``base``, a model card and ``metadata``.

    Adapters are merged into ``model`` itself; ExportError where that would change its answers. ``metadata``
    becomes echoray.json and must hold ``name``, ``image_size_px``, ``image_layout``, ``system_prompt``,
    ``lineage`` (the artifacts it was made from, with their counts) and ``training`` (its stages' summaries).
    """
    merge_adapters(model)
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, max_shard_size=MAX_SHARD_BYTES)
    copy_files(base, out, PROCESSOR_FILES)
    _set_pixel_budget(out / _PIXEL_FILE, metadata["image_size_px"])
    (out / METADATA_FILE).write_text(json.dumps(dict(metadata), indent=1, sort_keys=True, ensure_ascii=False))
    (out / "README.md").write_text(_card(model, metadata))


def _card(model: EchoVLMForConditionalGeneration, metadata: Mapping[str, Any]) -> str:
    text, size_px = model.config.text_config, metadata["image_size_px"]
    training = [
        f"| {one['stage']} | {one['steps']} | {one['loss']:.4f} | {one['trained_parameters']:,} |"
        for one in metadata["training"]
    ]
    lineage = [
        f"- `{path}`: {json.dumps(counts, sort_keys=True)}" for path, counts in metadata["lineage"].items()
    ]
    return _CARD.format(
        name=metadata["name"],
        mix=text.mix,
        num_experts=text.num_experts,
        num_experts_per_tok=text.num_experts_per_tok,
        images=_IMAGES[metadata["image_layout"]].format(size_px, size_px**2),
        training="\n".join(training) or "| none recorded | | | |",
        lineage="\n".join(lineage) or "None recorded.",
    )


def _set_pixel_budget(path: Path, size_px: int) -> None:
    """Let the directory's own processor keep to the pixels of training, and our pictures as they are."""
    if not path.is_file():
        return
    values = json.loads(path.read_text())
    for old_name in ("min_pixels", "max_pixels"):  # these would go before ``size``
        values.pop(old_name, None)
    values["size"] = {"shortest_edge": _MIN_PIXELS, "longest_edge": size_px**2}
    path.write_text(json.dumps(values, indent=2) + "\n")


def copy_files(source: Path, out: Path, names: Iterable[str]) -> None:
    """Copy those of ``names`` that ``source`` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def load_exported(folder: Path, *, dtype: torch.dtype = torch.float32) -> EchoVLMForConditionalGeneration:
    """Load an exported directory.

    Raises ModelLoadError where a weight is missing, not known or of another shape.
    """
    return load_strictly(folder, hint="name a directory that `echoray model export` wrote", dtype=dtype)
