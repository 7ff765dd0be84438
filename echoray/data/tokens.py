"""From clean studies to token ids and labels, in the base model's chat format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from echoray.config import DataConfig
from echoray.data.batch import IGNORE, MERGE, grid_of, shard_schema
from echoray.data.clean import study_of
from echoray.data.conversations import SYSTEM_PROMPT, conversations, imported
from echoray.data.instruct.item_files import conversations_of_part
from echoray.data.parts import commit, is_part, number_of, part_name, read_rows, to_parquet
from echoray.storage import Store
from echoray.types import SPLITS, ArtifactRef, Conversation, Rejection

Grid = tuple[int, int, int]  # (t, h, w) of an image in patches
IMAGE_PAD = "<|image_pad|>"
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


def study_groups(store: Store, studies: ArtifactRef, size_bytes: int) -> list[dict[str, Any]]:
    """Work for ``WriteShards``: {number, paths}, parts of studies of ``size_bytes`` in all, or one part."""
    sizes = store.sizes(studies.path)
    groups: list[dict[str, Any]] = []
    room = 0
    for path in filter(is_part, sizes):
        room -= sizes[path]
        if not groups or room < 0:
            groups.append({"number": len(groups), "paths": []})
            room = size_bytes - sizes[path]
        groups[-1]["paths"].append(path)
    return groups


class WriteShards:
    """A Ray Data actor: tokenizes some parts of studies and writes one shard of each split."""

    def __init__(
        self,
        store: Store,
        ref: ArtifactRef,
        base: Path,
        config: DataConfig,
        seed: int,
        generated: ArtifactRef | None = None,
    ) -> None:
        self.store, self.ref, self.config, self.seed = store, ref, config, seed
        self.generated = generated
        self.tokenizer = ConversationTokenizer(base, config.max_length_tokens)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shards that ``row["work"]`` describes."""
        rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        rejections: list[Rejection] = []
        for path in row["work"]["paths"]:
            made = self._generated(path)
            for study in read_rows(self.store, path):
                self._study(study, made, rows[study["split"]], rejections)
        number = row["work"]["number"]
        contents = {
            part_name(number, f"{split}/"): to_parquet(made, shard_schema())
            for split, made in rows.items()
            if made
        }
        summary = {
            "examples": {split: len(made) for split, made in rows.items()},
            "truncated": sum(one["truncated"] for made in rows.values() for one in made),
            "rejections": [asdict(one) for one in rejections],
        }
        return commit(self.store, self.ref, number, contents, summary)

    def _generated(self, path: str) -> dict[str, list[Conversation]] | None:
        """The generated conversations of a part of the studies; None where they are made by rules."""
        if self.generated is None:
            return None
        return conversations_of_part(self.store, self.generated, number_of(path))

    def _study(
        self,
        row: dict[str, Any],
        generated: Mapping[str, Sequence[Conversation]] | None,
        examples: list[dict[str, Any]],
        rejections: list[Rejection],
    ) -> None:
        study = study_of(row)
        if generated is None:
            found = conversations(study, vqa_per_study=self.config.vqa_per_study, seed=self.seed)
        else:
            found = [*imported(study), *generated.get(study.study_hash, ())]
        for one in found:
            example = self.tokenizer.encode(one, row["images"])
            if example is None:
                rejections.append(Rejection(one.example_id, "tokenize", "too_long"))
            else:
                examples.append(example)
