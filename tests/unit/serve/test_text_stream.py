"""Streaming detokenisation against the tokenizer's own decoding of the whole answer."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from echoray.model.base import WEIGHTS
from echoray.serve.text_stream import TextStream

TEXT = st.text(st.sampled_from("ab c\n肝脏超声🙂é"), max_size=40)


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS)


def stream(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    text = TextStream(tokenizer(), stop)
    pieces = []
    for token_id in ids:
        pieces.append(text.push(token_id))
        if text.stopped:
            break
    return [*pieces, text.finish()], text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5119), max_size=60))
def test_the_pieces_of_any_tokens_join_to_the_whole_decoding(ids: list[int]) -> None:
    pieces, text = stream(ids)
    whole = tokenizer().decode(ids, skip_special_tokens=True)
    assert "".join(pieces) == whole.rstrip("\ufffd")
    assert text.num_tokens == len(ids)


@settings(max_examples=200, deadline=None)
@given(TEXT, st.text(st.sampled_from("ab c肝脏"), min_size=1, max_size=4))
def test_an_answer_ends_before_the_first_stop_string(answer: str, stop: str) -> None:
    ids = tokenizer()(answer).input_ids
    whole = tokenizer().decode(ids)
    pieces, text = stream(ids, ("never", stop))
    assert "".join(pieces) == whole.partition(stop)[0]
    assert text.stopped == (stop in whole)


def test_text_is_shown_as_soon_as_no_stop_string_can_begin_in_it() -> None:
    ids = tokenizer()("the liver is smooth").input_ids
    pieces, _ = stream(ids, ("###",))
    assert all(pieces[:-1])
    assert pieces[-1] == ""
