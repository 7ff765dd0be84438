"""Model inputs against transformers' own, and what packing must never change."""

from __future__ import annotations

import io
import random
import uuid
from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from echoray.data.batch import (
    IGNORE,
    PATCH_PX,
    SCHEMA_KEY,
    SHARD_SCHEMA,
    Batch,
    Example,
    blank,
    load_examples,
    mrope_positions,
    pack,
    patchify,
)
from echoray.errors import ShardError
from echoray.storage import Store, open_store
from echoray.types import ArtifactRef

IMAGE = 7  # the id of image pads in these tests; text ids are above 100 and each occurs once
SHAPES = ((28, 28), (28, 56), (56, 28))


def png(pixels: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (28, 140), (112, 84)])
def test_patches_equal_those_of_transformers_image_processor(height: int, width: int) -> None:
    from transformers import Qwen2VLImageProcessor

    picture = noise(height, width)
    expected = Qwen2VLImageProcessor(do_resize=False)([Image.fromarray(picture)], return_tensors="pt")
    patches_PD = patchify(png(picture))
    assert patches_PD.dtype == np.float32
    np.testing.assert_allclose(patches_PD, expected["pixel_values"].numpy(), rtol=0, atol=1e-6)
    grey = patchify(png(picture[..., 0]))
    np.testing.assert_array_equal(grey, patchify(png(np.repeat(picture[..., :1], 3, axis=2))))


@cache
def qwen() -> object:
    """Qwen2-VL without weights."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLModel

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    with torch.device("meta"):
        return Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision))


grids = st.tuples(st.just(1), st.integers(1, 5).map(lambda n: 2 * n), st.integers(1, 5).map(lambda n: 2 * n))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.lists(st.tuples(grids, st.integers(1, 6)), max_size=4), st.integers(0, 3))
def test_positions_equal_transformers_rope_index(
    before: int, images: list[tuple[tuple[int, int, int], int]], more: int
) -> None:
    import torch

    ids = [100] * before
    for grid, text_after in images:
        ids += [IMAGE] * (grid[1] * grid[2] // 4) + [101] * text_after
    ids += [102] * (more + (not ids))
    ids_T = np.array(ids)
    grid_I3 = np.array([grid for grid, _ in images], np.int64).reshape(-1, 3)
    expected, _ = qwen().get_rope_index(  # type: ignore[attr-defined]
        torch.tensor(ids_T[None]),
        torch.tensor(ids_T[None] == IMAGE).int(),
        image_grid_thw=torch.tensor(grid_I3) if images else None,
    )
    np.testing.assert_array_equal(mrope_positions(ids_T, grid_I3, IMAGE), expected[:, 0].numpy())


@cache
def coloured(number: int, shape: tuple[int, int]) -> bytes:
    """A picture that no other number has."""
    return png(np.full((*shape, 3), (number, 255 - number, 128), np.uint8))


def example(number: int, images: Sequence[tuple[int, int]], num_prompt: int, num_answer: int) -> Example:
    """A prompt with images, then the answer; every text token occurs in this example and place only."""
    first = 1000 * (number + 1)
    ids = list(range(first, first + num_prompt))
    for height, width in images:
        ids += [IMAGE] * (height * width // 28**2) + [first + len(ids)]
    labels = [IGNORE] * len(ids)
    answer = list(range(first + 900, first + 900 + num_answer))
    grid = [(1, height // PATCH_PX, width // PATCH_PX) for height, width in images]
    return Example(
        f"{number:03d}", "0" * 16, "liver", "report", "en",
        np.array(ids + answer), np.array(labels + answer),
        tuple(coloured(8 * number + place, shape) for place, shape in enumerate(images)),
        np.array(grid, np.int64).reshape(-1, 3), "prompt", "answer",
    )  # fmt: skip


@st.composite
def some_examples(draw: st.DrawFn) -> list[Example]:
    shapes = st.lists(st.sampled_from(SHAPES), max_size=2)
    parts = draw(st.lists(st.tuples(shapes, st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
    return [example(number, *part) for number, part in enumerate(parts)]


def spans(batch: Batch) -> list[tuple[int, slice]]:
    """(row, place) of every example, from where the position in the example is 0; padding is left out."""
    found = []
    for row, used in enumerate(batch.mask_BT.sum(1).tolist()):
        starts = np.flatnonzero(batch.position_ids_4BT[0, row, :used] == 0).tolist()
        found += [(row, slice(*ends)) for ends in zip(starts, [*starts[1:], used], strict=True)]
    return found


@settings(max_examples=60, deadline=None)
@given(some_examples(), st.integers(12, 40))
def test_packing_keeps_every_example_whole_and_once(examples: list[Example], row_length: int) -> None:
    batch = pack(examples, row_length, IMAGE)
    ids_of = {tuple(one.input_ids.tolist()): one for one in examples}
    packed = []
    for row, place in spans(batch):
        one = ids_of[tuple(batch.input_ids_BT[row, place].tolist())]
        packed.append(one)
        np.testing.assert_array_equal(batch.labels_BT[row, place], [*one.labels[1:], IGNORE])
        np.testing.assert_array_equal(
            batch.position_ids_4BT[1:, row, place], mrope_positions(one.input_ids, one.grid_thw, IMAGE)
        )
    assert sorted(one.example_id for one in packed) == [one.example_id for one in examples]
    images = [patchify(image) for one in packed for image in one.images]
    assert np.array_equal(batch.patches_PD, np.concatenate(images) if images else np.zeros((0, 1176)))
    assert batch.grid_thw_I3.tolist() == [grid for one in packed for grid in one.grid_thw.tolist()]
    assert (batch.labels_BT != IGNORE).sum() == sum(one.num_targets for one in examples)


@settings(max_examples=60, deadline=None)
@given(some_examples(), st.integers(12, 40))
def test_rows_are_full_but_not_too_long_and_padding_is_masked(
    examples: list[Example], row_length: int
) -> None:
    batch = pack(examples, row_length, IMAGE)
    used_B = batch.mask_BT.sum(1)
    num_in_row_B = np.bincount([row for row, _ in spans(batch)])
    assert all(used_B[num_in_row_B > 1] <= row_length)
    # First fit: no two rows could be one.
    assert all(a + b > row_length for i, a in enumerate(used_B) for b in used_B[:i])
    assert batch.mask_BT.shape[1] == used_B.max()
    padding_BT = np.arange(used_B.max()) >= used_B[:, None]
    np.testing.assert_array_equal(batch.mask_BT, ~padding_BT)
    assert set(batch.labels_BT[padding_BT]) <= {IGNORE}


@settings(max_examples=40, deadline=None)
@given(some_examples(), st.integers(12, 40), st.randoms())
def test_a_batch_does_not_depend_on_the_order_of_its_examples(
    examples: list[Example], row_length: int, order: random.Random
) -> None:
    expected = pack(examples, row_length, IMAGE)
    order.shuffle(examples)
    for name, value in vars(pack(examples, row_length, IMAGE)).items():
        np.testing.assert_array_equal(value, getattr(expected, name), name)


def test_a_blank_batch_has_inputs_but_neither_targets_nor_tokens_that_count() -> None:
    one = example(3, [(28, 56)], 4, 5)
    empty, batch = blank(one, 40, IMAGE), pack([one], 40, IMAGE)
    assert not empty.mask_BT.any() and batch.mask_BT.all()
    assert (empty.labels_BT == IGNORE).all() and (batch.labels_BT != IGNORE).any()
    for name in ("input_ids_BT", "position_ids_4BT", "patches_PD", "grid_thw_I3"):
        np.testing.assert_array_equal(getattr(empty, name), getattr(batch, name), name)


SHARDS = ArtifactRef("shards", "s", "0" * 64)


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def write_shard(store: Store, name: str, examples: list[Example], schema: bytes = SHARD_SCHEMA) -> None:
    rows = [
        {
            key: list(value.ravel()) if isinstance(value, np.ndarray) else value
            for key, value in vars(one).items()
        }
        for one in examples
    ]
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({SCHEMA_KEY: schema}), target)
    store.write_bytes(f"{SHARDS.path}/{name}", target.getvalue())


def test_examples_come_back_as_they_were_written_and_in_order(store: Store) -> None:
    examples = [example(0, [], 3, 4), example(1, [(28, 28), (28, 56)], 2, 5), example(2, [(56, 28)], 1, 1)]
    write_shard(store, "train/part-00001.parquet", examples[2:])
    write_shard(store, "train/part-00000.parquet", examples[:2])
    write_shard(store, "test/part-00000.parquet", [example(9, [], 2, 2)])
    found = load_examples(store, SHARDS, "train")
    assert [one.example_id for one in found] == ["000", "001", "002"]
    for one, expected in zip(found, examples, strict=True):
        for key, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(one, key), value, key)
            assert type(getattr(one, key)) is type(value)
    assert load_examples(store, SHARDS, "train", ["diagnosis"]) == []
    assert len(load_examples(store, SHARDS, "train", ["vqa", "report"])) == 3
    assert load_examples(store, SHARDS, "validation") == []


@pytest.mark.parametrize("schema", [b"0", b""])
def test_shards_of_another_schema_are_refused_by_name(store: Store, schema: bytes) -> None:
    write_shard(store, "train/part-00000.parquet", [example(0, [], 1, 1)], schema)
    with pytest.raises(ShardError, match=r"part-00000\.parquet: schema b'.*', expected b'1'"):
        load_examples(store, SHARDS, "train")
