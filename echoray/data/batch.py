"""From shards to model inputs: examples in memory, packed into rows, images cut into patches.

Shape legend: B rows, T tokens per row, P patches, D values per patch, I images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echoray.errors import ShardError
from echoray.storage import Store
from echoray.types import ArtifactRef, Split

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SHARD_SCHEMA = b"1"
SCHEMA_KEY = b"echoray_schema"
PATCH_PX = 14
MERGE = 2
TEMPORAL = 2  # a still image is repeated to fill Qwen2-VL's temporal patch
IGNORE = -100
# CLIP's channel statistics, which Qwen2-VL's image processor normalises with.
_MEAN_3 = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD_3 = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Example:
    """One tokenized example of a shard."""

    example_id: str
    study_hash: str
    system: str
    task: str
    language: str
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    images: tuple[bytes, ...]  # PNG
    grid_thw: NDArray[np.int64]  # (I, 3) in patches
    prompt: str
    answer: str

    @property
    def num_targets(self) -> int:
        """Tokens that are learned; the first label has no token before it that could predict it."""
        return int((self.labels[1:] != IGNORE).sum())


@dataclass(frozen=True)
class Batch:
    """Packed model inputs: rows of whole examples, one after the other; padding has label -100, mask 0."""

    input_ids_BT: NDArray[np.int64]
    labels_BT: NDArray[np.int64]  # already shifted: labels_BT[b, t] is the target of position t
    position_ids_4BT: NDArray[np.int64]  # plane 0: position in the example; planes 1 to 3: M-RoPE (t, h, w)
    mask_BT: NDArray[np.int64]
    patches_PD: NDArray[np.float32]
    grid_thw_I3: NDArray[np.int64]


@cache
def shard_schema() -> pa.Schema:
    """Columns of a shard, with the schema version in the metadata; images are PNG."""
    import pyarrow as pa

    texts = ("example_id", "study_hash", "system", "task", "language", "prompt", "answer")
    fields = [
        *((name, pa.string()) for name in texts),
        *((name, pa.list_(pa.int32())) for name in ("input_ids", "labels", "grid_thw")),
        ("images", pa.list_(pa.binary())),
        *((name, pa.int64()) for name in ("num_tokens", "num_image_tokens", "num_answer_tokens")),
        ("truncated", pa.bool_()),
    ]
    return pa.schema(fields, metadata={SCHEMA_KEY: SHARD_SCHEMA})


def load_examples(
    store: Store, shards: ArtifactRef, split: Split, tasks: Sequence[str] | None = None
) -> list[Example]:
    """Read a split's examples, ordered as in the shards; ``tasks`` keeps only these.

    Raises ShardError where a shard was written by another schema version.
    """
    examples = []
    for path in store.list(f"{shards.path}/{split}"):
        rows = read_shard(store, path).to_pylist()
        examples += [_example(row) for row in rows if tasks is None or row["task"] in tasks]
    return examples


def read_shard(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read ``columns`` (none named: all) of one shard; ShardError where another schema version wrote it."""
    with open_shard(store, path) as shard:
        return shard.read(columns=None if columns is None else list(columns))


@contextmanager
def open_shard(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """One shard, opened for reading in parts; ShardError where another schema version wrote it."""
    import pyarrow.parquet as pq

    with store.open(path) as handle:
        shard = pq.ParquetFile(handle)
        found = (shard.schema_arrow.metadata or {}).get(SCHEMA_KEY)
        if found != SHARD_SCHEMA:
            raise ShardError(
                f"{store.uri(path)}: schema {found!r}, expected {SHARD_SCHEMA!r}",
                hint="delete the shards artifact and run `echoray data tokenize`",
            )
        yield shard


def _example(row: dict[str, object]) -> Example:
    arrays = {key: np.asarray(row[key], np.int64) for key in ("input_ids", "labels", "grid_thw")}
    text = {key: str(row[key]) for key in Example.__annotations__ if key not in {*arrays, "images"}}
    images = row["images"]
    assert isinstance(images, list)
    return Example(
        **text,
        input_ids=arrays["input_ids"],
        labels=arrays["labels"],
        grid_thw=arrays["grid_thw"].reshape(-1, 3),
        images=tuple(images),
    )


def pack(examples: Sequence[Example], row_length: int, image_token_id: int) -> Batch:
    """Put examples into as few rows of at most ``row_length`` tokens as first-fit finds; none is split.

    An example longer than ``row_length`` gets a row of its own. The images follow the order of the rows.
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda one: (-len(one.input_ids), one.example_id)):
        length = len(example.input_ids)
        place = next((index for index, free in enumerate(room) if free >= length), None)
        if place is None:
            rows.append([example])
            room.append(row_length - length)
        else:
            rows[place].append(example)
            room[place] -= length
    return _stack(rows, image_token_id)


def blank(example: Example, row_length: int, image_token_id: int) -> Batch:
    """A batch that counts for nothing, for a rank that a small global batch leaves without examples."""
    batch = pack([example], row_length, image_token_id)
    return Batch(
        batch.input_ids_BT,
        np.full_like(batch.labels_BT, IGNORE),
        batch.position_ids_4BT,
        np.zeros_like(batch.mask_BT),
        batch.patches_PD,
        batch.grid_thw_I3,
    )


def _stack(rows: list[list[Example]], image_token_id: int) -> Batch:
    width = max(sum(len(example.input_ids) for example in row) for row in rows)
    shape = (len(rows), width)
    ids_BT = np.zeros(shape, np.int64)
    labels_BT = np.full(shape, IGNORE, np.int64)
    mask_BT = np.zeros(shape, np.int64)
    positions_4BT = np.zeros((4, *shape), np.int64)
    for index, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.input_ids)
            ids_BT[index, start:end] = example.input_ids
            labels_BT[index, start : end - 1] = example.labels[1:]
            mask_BT[index, start:end] = 1
            positions_4BT[0, index, start:end] = np.arange(end - start)
            positions_4BT[1:, index, start:end] = mrope_positions(
                example.input_ids, example.grid_thw, image_token_id
            )
            start = end
        # Padding is a sequence of its own: it attends to nothing of the examples.
        positions_4BT[:, index, start:] = np.arange(width - start)
    ordered = [example for row in rows for example in row]
    patches = [patchify(image) for example in ordered for image in example.images]
    return Batch(
        ids_BT,
        labels_BT,
        positions_4BT,
        mask_BT,
        np.concatenate(patches) if patches else np.zeros((0, 3 * TEMPORAL * PATCH_PX**2), np.float32),
        np.concatenate([example.grid_thw for example in ordered]),
    )


def mrope_positions(
    input_ids_T: NDArray[np.int64], grid_thw_I3: NDArray[np.int64], image_token_id: int
) -> NDArray[np.int64]:
    """Qwen2-VL's position planes (3, T): text counts on, an image spans (t, h, w) from where text stands."""
    positions_3T = np.zeros((3, len(input_ids_T)), np.int64)
    is_image = input_ids_T == image_token_id
    token, position = 0, 0
    for t, h, w in grid_thw_I3:
        start = token + int(np.argmax(is_image[token:]))
        positions_3T[:, token:start] = np.arange(position, position + start - token)
        position += start - token
        size = (int(t), int(h) // MERGE, int(w) // MERGE)
        token = start + int(np.prod(size))
        positions_3T[:, start:token] = np.indices(size).reshape(3, -1) + position
        position += max(size)
    positions_3T[:, token:] = np.arange(position, position + len(input_ids_T) - token)
    return positions_3T


def grid_of(png: bytes) -> tuple[int, int, int]:
    """(t, h, w) of an image in patches, from its header alone."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return 1, image.height // PATCH_PX, image.width // PATCH_PX


def patchify(png: bytes) -> NDArray[np.float32]:
    """Decode an image whose sides are multiples of 28 px and cut it into normalised patches (P, 1176).

    Order and values equal transformers' Qwen2VLImageProcessor without resizing: 2x2 patches that are merged
    later lie next to each other.
    """
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        pixels_HW3 = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    pixels_3HW: NDArray[np.float32] = ((pixels_HW3 - _MEAN_3) / _STD_3).transpose(2, 0, 1)
    rows, columns = (side // PATCH_PX // MERGE for side in pixels_3HW.shape[1:])
    cut = pixels_3HW.reshape(3, rows, MERGE, PATCH_PX, columns, MERGE, PATCH_PX)
    # -> row, column, row in merge, column in merge, channel, y, x
    cut = cut.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, 1, PATCH_PX, PATCH_PX)
    patches_PD: NDArray[np.float32] = np.repeat(cut, TEMPORAL, axis=2).reshape(len(cut), -1)
    return patches_PD
