"""From a conversation to token ids and labels, in the base model's chat format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from echoray.data.batch import IGNORE, MERGE, PATCH_PX
from echoray.data.conversations import SYSTEM_PROMPT
from echoray.types import Conversation

IMAGE_PAD = "<|image_pad|>"


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
