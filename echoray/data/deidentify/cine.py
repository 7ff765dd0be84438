"""The frames of a study: those of one file share one reading, checked pixel by pixel.

Between frames of a cine only what changed is read again, so text that comes, goes or ticks is found, and
what is removed from one frame is removed from all of its cine: a reader may miss over moving tissue what it
saw a frame before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from echoray.data.deidentify.beside import meet
from echoray.data.deidentify.pixels import TEXTURE, RedactedFrame, decide, redact_frame
from echoray.data.deidentify.reader import ReadText, TextReader
from echoray.data.deidentify.rules import Rules
from echoray.types import Box, Frame

# Lossy compression moves still pixels by a few levels; text that differs by less from what was there before
# cannot be seen.
_STILL_LEVELS = 8
_TILE_PX = 16
_MAX_READ_AGAIN = 0.7  # of the frame; beyond it is read as a whole


def redact_cines(
    frames: Sequence[Frame], reader: TextReader, *, identifiers: tuple[str, ...], rules: Rules
) -> tuple[RedactedFrame, ...]:
    """Remove patient information from a study's frames; those of one file come one after another."""
    found: list[RedactedFrame] = []
    for _, group in groupby(frames, key=lambda one: (one.cine, one.pixels.shape, one.regions)):
        cine = list(group)
        read = list(read_cine([one.pixels for one in cine], reader))
        removed = _removed(cine, read, identifiers, rules) if len(cine) > 1 else []
        found += [
            redact_frame(frame, texts, identifiers=identifiers, rules=rules, also=removed)
            for frame, texts in zip(cine, read, strict=True)
        ]
    return tuple(found)


def read_cine(pictures: Sequence[NDArray[np.uint8]], reader: TextReader) -> Iterator[list[ReadText]]:
    """The text of each picture (H, W, 3): the first is read whole, of each other what differs from before."""
    texts: list[ReadText] = []
    reference: NDArray[np.uint8] | None = None  # each pixel as it was when it was last read
    for pixels in pictures:
        places = None if reference is None else _changed(reference, pixels, texts)
        if places is None:
            reference, texts = pixels.copy(), reader.read(pixels)
        elif reference is not None:
            for place in places:
                area = np.s_[place.y0 : place.y1, place.x0 : place.x1]
                reference[area] = pixels[area]
                again = [_moved(one, place) for one in reader.read(pixels[area])]
                texts = [one for one in texts if not meet(one.box, place)] + again
        yield list(texts)


def _changed(
    reference_HW3: NDArray[np.uint8], pixels_HW3: NDArray[np.uint8], texts: Sequence[ReadText]
) -> list[Box] | None:
    """Separate boxes around all that changed, with all of each text they touch; None for nearly the whole."""
    import cv2

    height, width = pixels_HW3.shape[:2]
    change_HW = cv2.absdiff(reference_HW3, pixels_HW3).max(axis=2) > _STILL_LEVELS
    rows, columns = -(-height // _TILE_PX), -(-width // _TILE_PX)
    padded_HW = np.pad(change_HW, ((0, rows * _TILE_PX - height), (0, columns * _TILE_PX - width)))
    tiles = padded_HW.reshape(rows, _TILE_PX, columns, _TILE_PX).any(axis=(1, 3)).astype(np.uint8)
    # A tile around it: the reader needs to see that text ends.
    tiles = cv2.dilate(tiles, np.ones((3, 3), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(tiles, connectivity=8)
    places = [
        Box(
            x * _TILE_PX,
            y * _TILE_PX,
            min(width, (x + w) * _TILE_PX),
            min(height, (y + h) * _TILE_PX),
        )
        for x, y, w, h, _ in stats[1:].tolist()
    ]
    places = _apart(places, [one.box for one in texts])
    area = sum((one.x1 - one.x0) * (one.y1 - one.y0) for one in places)
    return None if area > _MAX_READ_AGAIN * height * width else places


def _apart(places: list[Box], texts: Sequence[Box]) -> list[Box]:
    """The places, grown to hold every text that they touch and joined where they meet, until none does."""
    while True:
        grown = []
        for place in places:
            for text in texts:
                if meet(place, text):
                    place = _hull(place, text)
            grown.append(place)
        joined: list[Box] = []
        for place in grown:
            for other in [one for one in joined if meet(one, place)]:
                joined.remove(other)
                place = _hull(place, other)
            joined.append(place)
        if joined == places:
            return places
        places = joined


def _removed(
    cine: Sequence[Frame],
    read: Sequence[Sequence[ReadText]],
    identifiers: tuple[str, ...],
    rules: Rules,
) -> list[Box]:
    """Every box that is removed from any frame, once."""
    boxes = (
        one.box
        for frame, texts in zip(cine, read, strict=True)
        for one in decide(frame, texts, identifiers=identifiers, rules=rules)
        if not one.kept and one.category != TEXTURE
    )
    return list(dict.fromkeys(boxes))


def _hull(one: Box, other: Box) -> Box:
    return Box(min(one.x0, other.x0), min(one.y0, other.y0), max(one.x1, other.x1), max(one.y1, other.y1))


def _moved(text: ReadText, place: Box) -> ReadText:
    box = text.box
    moved = Box(box.x0 + place.x0, box.y0 + place.y0, box.x1 + place.x0, box.y1 + place.y0)
    return replace(text, box=moved)
