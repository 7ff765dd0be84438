"""Write one merged model directory that transformers and vLLM load, and read it back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from echoray.model.modeling import EchoVLMForConditionalGeneration, load_strictly
from echoray.model.trainable import merge_adapters

# Tokenizer and processor files, copied from the base as they are.
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
METADATA_FILE = "echoray.json"
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
- Image size in training: {image_size_px} x {image_size_px} pixels
- Lineage: {lineage}

Load with `import echoray.model` and `AutoModelForImageTextToText.from_pretrained`.
"""
)


def export_model(
    model: EchoVLMForConditionalGeneration, base: Path, out: Path, *, metadata: Mapping[str, Any]
) -> None:
    """Write weights (safetensors), the processor files of ``base``, a model card and ``metadata``.

    Adapters are merged into ``model`` itself. ``metadata`` becomes echoray.json and must hold ``name``,
    ``image_size_px``, ``system_prompt`` and ``lineage`` (the artifacts it was made from).
    """
    merge_adapters(model)
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, max_shard_size=MAX_SHARD_BYTES)
    copy_files(base, out, PROCESSOR_FILES)
    (out / METADATA_FILE).write_text(json.dumps(dict(metadata), indent=1, sort_keys=True, ensure_ascii=False))
    text = model.config.text_config
    card = _CARD.format(
        name=metadata["name"],
        mix=text.mix,
        num_experts=text.num_experts,
        num_experts_per_tok=text.num_experts_per_tok,
        image_size_px=metadata["image_size_px"],
        lineage=", ".join(metadata["lineage"]) or "none recorded",
    )
    (out / "README.md").write_text(card)


def copy_files(source: Path, out: Path, names: Iterable[str]) -> None:
    """Copy those of ``names`` that ``source`` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def load_exported(folder: Path, *, dtype: torch.dtype = torch.float32) -> EchoVLMForConditionalGeneration:
    """Load an exported directory.

    Raises ModelLoadError where a weight is missing, not known or of another shape.
    """
    return load_strictly(folder, hint="name a directory that `echoray train export` wrote", dtype=dtype)
