"""Greedy decoding of shard rows with any Qwen2-VL or EchoVLM directory; the worker's side.

Shape legend: B prompts, T tokens (left-padded), P patches, D values per patch, I images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

import echoray.model  # noqa: F401  (registers EchoVLM with the Auto classes)
from echoray import artifacts
from echoray.data.batch import IGNORE, patchify, read_shard
from echoray.errors import ModelLoadError
from echoray.storage import Store
from echoray.types import ArtifactRef

END_OF_TURN = "<|im_end|>"
_COLUMNS = ("example_id", "input_ids", "labels", "images", "grid_thw")


@dataclass(frozen=True)
class Prompt:
    """A shard row up to its answer."""

    input_ids_T: NDArray[np.int64]
    patches_PD: NDArray[np.float32] | None
    grid_thw_I3: NDArray[np.int64]

    @staticmethod
    def of(row: Mapping[str, Any]) -> Prompt:
        """Cut the row before its first label and its images into patches."""
        answer = int(np.argmax(np.asarray(row["labels"]) != IGNORE))
        patches = [patchify(image) for image in row["images"]]
        return Prompt(
            np.asarray(row["input_ids"][:answer], np.int64),
            np.concatenate(patches) if patches else None,
            np.asarray(row["grid_thw"], np.int64).reshape(-1, 3),
        )


class Decoder:
    """One loaded model."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: str) -> None:
        """Load ``folder``; ModelLoadError where it is not a complete model directory."""
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"{folder}: {error}", hint="name a directory that `echoray model export` wrote"
            ) from None
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if wrong:
            raise ModelLoadError(
                f"{folder}: {len(wrong)} weights do not fit, first {wrong[:3]}", hint="export the model again"
            )
        self.model = model.eval().to(device)
        self.end_id = self.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        if self.end_id is None:
            raise ModelLoadError(f"{folder}: no {END_OF_TURN} token", hint="use a Qwen2-VL tokenizer")

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """The most likely answer of each prompt up to ``<|im_end|>``, at most ``max_new_tokens`` long."""
        inputs = self._inputs(prompts)
        # Rope offsets of the batch before would be used where this one has no image.
        self.model.model.rope_deltas = None
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self.end_id, pad_token_id=self.end_id
        )
        made_BT = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.tokenizer.batch_decode(made_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        width = max(len(prompt.input_ids_T) for prompt in prompts)
        ids_BT = np.full((len(prompts), width), self.end_id, np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for index, prompt in enumerate(prompts):
            ids_BT[index, width - len(prompt.input_ids_T) :] = prompt.input_ids_T
            mask_BT[index, width - len(prompt.input_ids_T) :] = 1
        inputs = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "mm_token_type_ids": (ids_BT == self.model.config.image_token_id).astype(np.int64),
        }
        device = self.model.device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        patches = [prompt.patches_PD for prompt in prompts if prompt.patches_PD is not None]
        if patches:
            grid_I3 = np.concatenate([prompt.grid_thw_I3 for prompt in prompts])
            tensors["image_grid_thw"] = torch.from_numpy(grid_I3).to(device)
            tensors["pixel_values"] = torch.from_numpy(np.concatenate(patches)).to(device, self.model.dtype)
        return tensors


class BatchGenerator:
    """A Ray Data worker: holds one model at a time, and the shard that it read last.

    Work comes ordered by model, so every worker loads each model about once.
    """

    def __init__(
        self, store: Store, sources: Sequence[Path | ArtifactRef], max_new_tokens: int, precision: str
    ) -> None:
        self._store = store
        self._sources = sources
        self._max_new_tokens = max_new_tokens
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loaded: tuple[int, Decoder] | None = None
        self._shard: tuple[str, Any] | None = None
        if self._device == "cpu":
            torch.set_num_threads(1)

    def __call__(self, work: dict[str, Any]) -> dict[str, Any]:
        """Generate for one batch: {model, path, rows} -> {model, example_id, prediction} (lists)."""
        table = self._table(str(work["path"])).take(work["rows"])
        decoder = self._decoder(int(work["model"]))
        texts = decoder.decode([Prompt.of(row) for row in table.to_pylist()], self._max_new_tokens)
        return {
            "model": work["model"],
            "example_id": table["example_id"].to_pylist(),
            "prediction": texts,
        }

    def _decoder(self, index: int) -> Decoder:
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # frees the model before, two may not fit
            source = self._sources[index]
            folder = artifacts.fetch(self._store, source) if isinstance(source, ArtifactRef) else source
            self._loaded = index, Decoder(folder, dtype=self._dtype, device=self._device)
        return self._loaded[1]

    def _table(self, path: str) -> Any:
        if self._shard is None or self._shard[0] != path:
            self._shard = path, read_shard(self._store, path, _COLUMNS)
        return self._shard[1]
