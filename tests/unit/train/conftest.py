"""A DeepSpeed engine in the test's own process, as one worker of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from echoray.config import RunConfig
from echoray.types import ArtifactRef


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch.distributed (gloo) with this process alone."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture
def steps_of(
    process_group: None, tiny_shards: ArtifactRef
) -> Callable[..., tuple[Any, list[dict[str, Any]]]]:
    """Train ``num`` of a stage's ``planned`` steps; the engine after them and the rows of metrics."""
    from echoray.data.batch import load_examples
    from echoray.data.cursor import Cursor
    from echoray.storage import store_of
    from echoray.train.checkpoint import load_progress, save_progress
    from echoray.train.job import StageJob
    from echoray.train.worker import Place, start, take_step

    def run_steps(
        run: RunConfig,
        stage: str = "align",
        *,
        num: int = 3,
        planned: int = 8,
        resume: Path | None = None,
        save: Path | None = None,
    ) -> tuple[Any, list[dict[str, Any]]]:
        import torch

        place = Place(0, 1, torch.device("cpu"))
        job = StageJob(run, stage, tiny_shards, None, tiny_shards)  # type: ignore[arg-type]
        engine = start(job, place, planned)
        examples = load_examples(store_of(run), tiny_shards, "train", job.config.tasks)
        cursor, rows = Cursor(run.seed, len(examples)), []
        if resume is not None:
            cursor, rows = load_progress(engine, resume)
        for _ in range(num):
            indices, cursor = cursor.take(job.config.global_batch_size)
            rows.append(take_step(job, place, engine, examples, indices))
        if save is not None:
            save_progress(engine, save, cursor, rows, rank=0, world_size=1)
        return engine, rows

    return run_steps
