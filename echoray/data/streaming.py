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

    Ray Data's own progress bars and console notices are switched off (warnings of failures come as errors);
    its log file keeps everything.
    """
    import ray.data

    # A dataset copies the context when it is made, so this comes first.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    dataset = ray.data.from_items(list(items), override_num_blocks=max(1, min(num_blocks, len(items))))
    yield from transform(dataset).iter_rows()
