"""From clean studies to token ids and labels, in the base model's chat format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoray.config import DataConfig
from echoray.data.batch import IGNORE, MERGE, grid_of, part_files
from echoray.data.conversations import SYSTEM_PROMPT, conversations
from echoray.data.ledger import packed
from echoray.storage import Store
from echoray.types import ArtifactRef, Conversation, Rejection, Report, Study, Turn

if TYPE_CHECKING:
    from pyarrow import Table

Grid = tuple[int, int, int]  # (t, h, w) of an image in patches
IMAGE_PAD = "<|image_pad|>"
RESERVED = re.compile(r"<\|\w+\|>")  # how the tokenizer spells turns and images
FORMAT_FILES = ("tokenizer.json", "chat_template.jinja", "chat_template.json")  # they decide the token ids


class ConversationTokenizer:
    """Applies the base model's chat template; images are expanded to their number of merged patches."""

    def __init__(self, base: Path, max_length_tokens: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._max_length_tokens = max_length_tokens

    def encode(self, conversation: Conversation, images: Sequence[bytes]) -> dict[str, Any] | None:
        """A shard row; labels are IGNORE except on the answer and its end-of-turn token.

        An answer that does not fit loses its tail, the end-of-turn token first, since it does not end there;
        None where not one token of it would be left beside the prompt and the images, which stay whole.
        """
        grids = [grid_of(image) for image in images]
        given = self.prompt_text(conversation.prompt, conversation.language, grids)
        given_ids = self.tokenizer(given).input_ids
        room = self._max_length_tokens - len(given_ids)
        if room < 1:
            return None
        # A report that spells a reserved token such as <|image_pad|> is text; it must not become that token.
        answer_ids = self.tokenizer(conversation.answer, split_special_tokens=True).input_ids
        answer_ids = [*answer_ids, self.tokenizer.eos_token_id]
        kept_ids = answer_ids[:room]
        return {
            **vars(conversation),
            "input_ids": given_ids + kept_ids,
            "labels": [IGNORE] * len(given_ids) + kept_ids,
            "images": list(images),
            "grid_thw": [side for grid in grids for side in grid],
            "num_tokens": len(given_ids) + len(kept_ids),
            "num_image_tokens": sum(map(num_image_tokens, grids)),
            "num_answer_tokens": len(kept_ids),
            "truncated": len(kept_ids) < len(answer_ids),
        }

    def prompt_text(self, prompt: str, language: str, grids: Sequence[Grid]) -> str:
        """System prompt, images and question up to where the assistant begins."""
        content = [{"type": "image"}] * len(grids) + [{"type": "text", "text": prompt}]
        messages = [
            {"role": "system", "content": SYSTEM_PROMPT[language]},
            {"role": "user", "content": content},
        ]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return expand_images(text, grids)


def expand_images(text: str, grids: Sequence[Grid]) -> str:
    """``text`` with its image tokens, one for each of ``grids``, repeated once per merged patch."""
    first, *rest = text.split(IMAGE_PAD)
    parts = [IMAGE_PAD * num_image_tokens(grid) + part for grid, part in zip(grids, rest, strict=True)]
    return "".join([first, *parts])


def num_image_tokens(grid: Grid) -> int:
    """How many tokens an image of (t, h, w) patches takes."""
    t, h, w = grid
    return t * h * w // MERGE**2


def study_ranges(store: Store, studies: ArtifactRef, size: int) -> Iterator[dict[str, Any]]:
    """Work for ``TokenizeStudies``: {path, start, stop}, at most ``size`` rows of one part file each."""
    import pyarrow.parquet as pq

    for path in part_files(store, studies.path):
        with store.open(path) as handle:
            count = pq.ParquetFile(handle).metadata.num_rows
        for start in range(0, count, size):
            yield {"path": path, "start": start, "stop": min(start + size, count)}


class TokenizeStudies:
    """A Ray Data worker: a range of study rows in, one row with its shard rows and rejections out."""

    def __init__(self, store: Store, base: Path, config: DataConfig, seed: int) -> None:
        self.store, self.config, self.seed = store, config, seed
        self.tokenizer = ConversationTokenizer(base, config.max_length_tokens)
        # The last part file: ranges come in order, so the next one is most often of the same file.
        self._part: tuple[str, Table] | None = None

    def __call__(self, work: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's row function."""
        examples: list[dict[str, Any]] = []
        rejections: list[Rejection] = []
        table = self._table(str(work["path"]))
        for row in table.slice(work["start"], work["stop"] - work["start"]).to_pylist():
            self._study(row, examples, rejections)
        return {
            "conversations": len(examples) + len(rejections),
            "examples": examples,
            "truncated": sum(one["truncated"] for one in examples),
            "rejections": packed(rejections),
        }

    def _table(self, path: str) -> Table:
        import pyarrow.parquet as pq

        if self._part is None or self._part[0] != path:
            with self.store.open(path) as handle:
                self._part = path, pq.read_table(handle)
        return self._part[1]

    def _study(
        self, row: dict[str, Any], examples: list[dict[str, Any]], rejections: list[Rejection]
    ) -> None:
        report = Report(row["findings"], row["impression"]) if row["findings"] or row["impression"] else None
        turns = tuple(Turn(**one) for one in json.loads(row["turns"]))
        named = {name: row[name] for name in ("study_hash", "patient_key", "system", "language", "source")}
        study = Study(**named, frames=(), report=report, turns=turns)
        for one in conversations(study, vqa_per_study=self.config.vqa_per_study, seed=self.seed):
            if RESERVED.search(one.prompt):  # it would forge a turn or an image
                rejections.append(Rejection(one.example_id, "tokenize", "reserved_token"))
                continue
            example = self.tokenizer.encode(one, row["images"])
            if example is None:
                rejections.append(Rejection(one.example_id, "tokenize", "too_long"))
            else:
                examples.append({**example, "split": row["split"]})
