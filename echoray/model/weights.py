"""A model directory's weights (safetensors only): known by their headers, read and written by pieces."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from echoray.errors import ModelLoadError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# safetensors' names. A quantised checkpoint has others, and scales that no model here knows.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the content."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """One tensor of a file, or the block of it that ``index`` selects (whole rows, so contiguous)."""

    name: str
    index: tuple[int | slice, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A tensor to be made: its ``pieces``' values one after the other in row-major order."""

    info: TensorInfo
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Weights:
    """The tensors of a directory's files by name, whatever file they are in."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    _readers: Mapping[str, Any]

    def piece(self, piece: Piece) -> Tensor:
        """The values; a view of the mapped file, so that no memory is taken."""
        reader = self._readers[piece.name]
        return reader.get_slice(piece.name)[piece.index] if piece.index else reader.get_tensor(piece.name)

    def content(self, piece: Piece) -> memoryview:
        """The bytes of the values, in row-major order."""
        return self.piece(piece).reshape(-1).view(torch.uint8).numpy().data

    def tensor(self, planned: Planned) -> Tensor:
        """The tensor that ``planned`` describes; one piece is a view, several are copied together."""
        parts = [self.piece(piece).reshape(-1) for piece in planned.pieces]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(planned.info.shape)


@contextmanager
def open_weights(folder: Path, *, hint: str) -> Iterator[Weights]:
    """Open model.safetensors, or the files that the index names, reading their headers only.

    Raises ModelLoadError where there are none, one is missing, cut off or damaged, two hold the same tensor,
    or there are only pickled weights, which are never read.
    """
    with ExitStack() as stack:
        tensors: dict[str, TensorInfo] = {}
        readers: dict[str, Any] = {}
        for file in _files(folder, hint):
            try:
                reader = stack.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelLoadError(f"{folder}: {file.name} cannot be read ({error})", hint=hint) from None
            for name in reader.keys():  # noqa: SIM118  (not a mapping)
                if name in tensors:
                    raise ModelLoadError(f"{folder}: {name} is in two files", hint=hint)
                tensors[name] = _info(folder, name, reader.get_slice(name), hint)
                readers[name] = reader
        yield Weights(folder, tensors, readers)


def write_weights(
    file: Path, plan: Mapping[str, Planned], weights: Weights, written: Callable[[], None]
) -> None:
    """Write a safetensors file piece by piece, calling ``written`` after each tensor.

    The library's own writer wants whole tensors: a file's worth of memory where experts are stacked. The
    format is https://github.com/huggingface/safetensors#format; for one dtype the bytes are the library's.
    """
    names = sorted(plan, key=lambda name: (-plan[name].info.dtype.itemsize, name))  # keeps all aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        info = plan[name].info
        start, end = end, end + info.num_bytes
        dtype = next(key for key, value in _DTYPES.items() if value == info.dtype)
        header[name] = {"dtype": dtype, "shape": info.shape, "data_offsets": (start, end)}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with file.open("xb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            for piece in plan[name].pieces:
                out.write(weights.content(piece))
            written()


def _files(folder: Path, hint: str) -> list[Path]:
    """In transformers' order of preference; shards that lost their index are read too."""
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: not a directory", hint=hint)
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        try:
            names = set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values())
            return [folder / name for name in sorted(names)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{folder}: {INDEX_FILE} cannot be read ({error!r})", hint=hint) from None
    shards = sorted(folder.glob("model-*.safetensors"))
    if not shards:
        pickled = ", only pickled weights, which are not read" if any(folder.glob("*.bin")) else ""
        raise ModelLoadError(f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}{pickled}", hint=hint)
    return shards


def _info(folder: Path, name: str, header: Any, hint: str) -> TensorInfo:
    dtype = header.get_dtype()
    if dtype not in _DTYPES:
        raise ModelLoadError(f"{folder}: {name} has the unknown dtype {dtype}", hint=hint)
    return TensorInfo(tuple(header.get_shape()), _DTYPES[dtype])
