"""From clean studies to token ids and labels, in the base model's chat format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoray.config import DataConfig
from echoray.data.batch import IGNORE, MERGE, PATCH_PX
from echoray.data.clean import study_of
from echoray.data.conversations import SYSTEM_PROMPT, conversations
from echoray.data.ledger import packed
from echoray.storage import Store
from echoray.types import ArtifactRef, Conversation, Rejection

if TYPE_CHECKING:
    from pyarrow import Table

IMAGE_PAD = "<|image_pad|>"
FORMAT_FILES = ("tokenizer.json", "chat_template.jinja", "chat_template.json")  # they decide the token ids


class ConversationTokenizer:
    """Applies the base model's chat template; images are expanded to their number of merged patches."""

    def __init__(self, base: Path, image_size_px: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        side = image_size_px // PATCH_PX
        self.grid_thw = (1, side, side)
        self.pads = IMAGE_PAD * (side // MERGE) ** 2

    def encode(self, conversation: Conversation, images: Sequence[bytes]) -> dict[str, Any]:
        """A shard row; labels are IGNORE except on the answer and its end-of-turn token."""
        given = self.prompt_text(conversation.prompt, conversation.language, len(images))
        given_ids = self.tokenizer(given).input_ids
        # A report that spells a reserved token such as <|image_pad|> is text; it must not become that token.
        answer_ids = self.tokenizer(conversation.answer, split_special_tokens=True).input_ids
        answer_ids = [*answer_ids, self.tokenizer.eos_token_id]
        return {
            **vars(conversation),
            "input_ids": given_ids + answer_ids,
            "labels": [IGNORE] * len(given_ids) + answer_ids,
            "images": list(images),
            "grid_thw": list(self.grid_thw) * len(images),
            "num_tokens": len(given_ids) + len(answer_ids),
        }

    def prompt_text(self, prompt: str, language: str, num_images: int) -> str:
        """System prompt, images and question up to where the assistant begins."""
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
        messages = [
            {"role": "system", "content": SYSTEM_PROMPT[language]},
            {"role": "user", "content": content},
        ]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.replace(IMAGE_PAD, self.pads)


def study_ranges(store: Store, studies: ArtifactRef, size: int) -> Iterator[dict[str, Any]]:
    """Work for ``TokenizeStudies``: {path, start, stop}, at most ``size`` rows of one part file each."""
    import pyarrow.parquet as pq

    for path in store.list(studies.path):
        if path.rpartition("/")[2].startswith("part-"):
            with store.open(path) as handle:
                count = pq.ParquetFile(handle).metadata.num_rows
            for start in range(0, count, size):
                yield {"path": path, "start": start, "stop": min(start + size, count)}


class TokenizeStudies:
    """A Ray Data worker: a range of study rows in, one row with its shard rows and rejections out."""

    def __init__(self, store: Store, base: Path, config: DataConfig, seed: int) -> None:
        self.store, self.config, self.seed = store, config, seed
        self.tokenizer = ConversationTokenizer(base, config.image_size_px)
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
        for one in conversations(study_of(row), vqa_per_study=self.config.vqa_per_study, seed=self.seed):
            example = self.tokenizer.encode(one, row["images"])
            if example["num_tokens"] > self.config.max_length_tokens:
                rejections.append(Rejection(one.example_id, "tokenize", "too_long"))
            else:
                examples.append({**example, "split": row["split"]})
