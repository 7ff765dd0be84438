"""The one way in which the steps use Ray Data: plain rows in, rows out in order, our own progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import Dataset


def streamed(
    items: Sequence[dict[str, Any]], num_blocks: int, transform: Callable[[Dataset], Dataset]
) -> Iterator[dict[str, Any]]:
    """Rows of ``transform`` over ``items`` in their order, as they are finished.

    Ray Data's own progress bars and console notices are switched off (a failure comes as an error, and who
    gets it decides whether its traceback is shown); its log file keeps everything.
    """
    import ray.data

    # A dataset copies the context when it is made, so this comes first.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True  # its wrapper loses the EchoRayError, and what to do next
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    dataset = ray.data.from_items(list(items), override_num_blocks=max(1, min(num_blocks, len(items))))
    yield from _rows(transform(dataset))


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Rows, pulled by this thread alone.

    ``iter_rows`` and ``iter_batches`` start threads that outlive an interrupted iteration, and that end the
    process without a word when they ask a Ray that is shut down.
    """
    import ray
    from ray.data.block import BlockAccessor

    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.block_refs:
            yield from BlockAccessor.for_block(ray.get(block)).to_arrow().to_pylist()


def streamed_by_actors(
    items: Sequence[dict[str, Any]],
    num_blocks: int,
    worker: type,
    arguments: tuple[Any, ...],
    *,
    num_workers: int,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Iterator[dict[str, Any]]:
    """``streamed`` through at most ``num_workers`` actors: ``worker(*arguments)``, called with one item."""
    from ray.data import ActorPoolStrategy

    yield from streamed(
        items,
        num_blocks,
        lambda dataset: dataset.map(
            worker,
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(size=max(1, min(num_workers, num_blocks))),
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
        ),
    )
