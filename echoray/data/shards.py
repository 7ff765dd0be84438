"""From clean studies to tokenized shards, written by the workers; no byte depends on how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from echoray import artifacts
from echoray.config import RunConfig, digest
from echoray.data.ledger import ledger_row, write_ledger
from echoray.data.parts import forget_progress, made_parts
from echoray.data.tokens import FORMAT_FILES, WriteShards, study_groups
from echoray.storage import Store, store_of
from echoray.types import SPLITS, ArtifactRef, Progress, Rejection

REVISION = 3  # see corpus.REVISION


def tokenize(
    run: RunConfig,
    studies: ArtifactRef,
    base: Path,
    progress: Progress,
    generated: ArtifactRef | None = None,
) -> ArtifactRef:
    """Build conversations and tokenize them for the base model in ``base`` (artifact kind "shards").

    The conversations are those ``generated`` from the studies (kind "conversations"), or a few by rules.
    The shards of each split are written by the workers; an interrupted step goes on where it was.
    """
    store = store_of(run)
    config = {
        "vqa_per_study": run.data.vqa_per_study,
        "max_length_tokens": run.data.max_length_tokens,
        "shard_mb": run.data.shard_mb,
        "tokenizer": digest([(base / name).read_text() for name in FORMAT_FILES if (base / name).exists()]),
        "seed": run.seed,
        "revision": REVISION,
    }
    parents = [studies, generated] if generated is not None else [studies]
    ref = artifacts.plan("shards", run.name, config=config, parents=parents)
    if artifacts.find(store, ref) is not None:
        return ref
    artifacts.require(store, studies, made_by="echoray data prepare")
    digests, counts = _written(run, store, ref, base, parents, progress)
    artifacts.seal(store, ref, config=config, parents=parents, counts=counts, digests=digests)
    forget_progress(store, ref)
    return ref


def _written(
    run: RunConfig,
    store: Store,
    ref: ArtifactRef,
    base: Path,
    parents: Sequence[ArtifactRef],
    progress: Progress,
) -> tuple[dict[str, str], dict[str, int]]:
    """Have the shards written, write the ledger; sha256 by file, and the counts of examples."""
    works = study_groups(store, parents[0], round(run.data.shard_mb * 10**6))
    arguments = (store, ref, base, run.data, run.seed, *parents[1:])
    digests: dict[str, str] = {}
    counts: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
    rejections: list[Rejection] = []
    truncated = done = 0
    for part in made_parts(store, ref, works, WriteShards, arguments, num_workers=run.data.num_workers):
        digests |= part.files
        counts.update(part.summary["examples"])
        rejections += [Rejection(**one) for one in part.summary["rejections"]]
        truncated += part.summary["truncated"]
        done += len(works[part.number]["paths"])
        progress("tokenized parts of studies", done, sum(len(one["paths"]) for one in works))
    kept = sum(counts.values())
    cut = {"truncated": truncated}
    ledger = ledger_row("tokenize", kept + len(rejections), kept, rejections, shortened=cut)
    return digests | write_ledger(store, ref.path, [ledger], rejections), {**counts, **cut}
