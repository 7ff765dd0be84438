"""The frames of a study: those of one file share one reading, checked pixel by pixel.

Between frames of a cine only what changed is read again, so text that comes, goes or ticks is found. Where
the header declares the scan, tissue that moves within it is read in the first and the last frame, and between
them only where it held text: what is written over moving tissue in none of these is not found. What is
removed from one frame is removed from all of its cine: a reader may miss over tissue what it saw before.
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
from echoray.data.quality import scan_regions
from echoray.types import Box, Frame

# Lossy compression moves still pixels by a few levels; text that differs by less from what was there before
# cannot be seen.
_STILL_LEVELS = 8
_TILE_PX = 16
_MAX_READ_AGAIN = 0.7  # of the frame; beyond it is read as a whole
# Tissue that moves is broad: at least so much of the frame, and so many tiles wide and high, where a line of
# text has two. Its rim is ragged and reaches further.
_TISSUE_SHARE, _TISSUE_TILES, _RIM_TILES = 0.1, 5, 2


def redact_cines(
    frames: Sequence[Frame], reader: TextReader, *, identifiers: tuple[str, ...], rules: Rules
) -> tuple[RedactedFrame, ...]:
    """Remove patient information from a study's frames; those of one file come one after another."""
    found: list[RedactedFrame] = []
    for _, group in groupby(frames, key=lambda one: (one.cine, one.pixels.shape, one.regions)):
        cine = list(group)
        read = list(read_cine([one.pixels for one in cine], reader, scan_regions(cine[0])))
        removed = _removed(cine, read, identifiers, rules) if len(cine) > 1 else []
        found += [
            redact_frame(frame, texts, identifiers=identifiers, rules=rules, also=removed)
            for frame, texts in zip(cine, read, strict=True)
        ]
    return tuple(found)


def read_cine(
    pictures: Sequence[NDArray[np.uint8]], reader: TextReader, scan: Sequence[Box] = ()
) -> Iterator[list[ReadText]]:
    """The text of each picture (H, W, 3): the first is read whole, of each other what differs from before.

    ``scan`` are the places where the header declares the scan.
    """
    texts: list[ReadText] = []
    reference: NDArray[np.uint8] | None = None  # each pixel as it was when it was last read
    for number, pixels in enumerate(pictures, 1):
        moving = () if number == len(pictures) else scan
        places = None if reference is None else _changed(reference, pixels, texts, moving)
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
    reference_HW3: NDArray[np.uint8],
    pixels_HW3: NDArray[np.uint8],
    texts: Sequence[ReadText],
    scan: Sequence[Box],
) -> list[Box] | None:
    """Separate boxes around all that changed, with all of each text they touch; None for nearly the whole.

    Tissue that moves within ``scan`` counts only where there is text.
    """
    import cv2

    height, width = pixels_HW3.shape[:2]
    change_HW = cv2.absdiff(reference_HW3, pixels_HW3).max(axis=2) > _STILL_LEVELS
    rows, columns = -(-height // _TILE_PX), -(-width // _TILE_PX)
    padded_HW = np.pad(change_HW, ((0, rows * _TILE_PX - height), (0, columns * _TILE_PX - width)))
    changed = padded_HW.reshape(rows, _TILE_PX, columns, _TILE_PX).any(axis=(1, 3))
    tiles = np.asarray(changed, np.uint8)
    moving = _moving_tissue(tiles, scan)
    # A tile around it: the reader needs to see that text ends. More where tissue may hide how it begins.
    margin = 1 + (_RIM_TILES if moving.any() else 0)
    written = [one.box for one in texts if tiles[_tiles_of(one.box)].any()]
    tiles = cv2.dilate(tiles & ~moving, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    for box in written:
        tiles[_tiles_of(box)] = 1
    places = _apart(_boxes(tiles, width, height), [one.box for one in texts])
    area = sum((one.x1 - one.x0) * (one.y1 - one.y0) for one in places)
    return None if area > _MAX_READ_AGAIN * height * width else places


def _moving_tissue(tiles: NDArray[np.uint8], scan: Sequence[Box]) -> NDArray[np.uint8]:
    """The changed tiles (1, else 0) of broad areas within ``scan``."""
    import cv2

    inside = np.zeros_like(tiles)
    for box in scan:
        inside[_tiles_of(box)] = 1
    broad = cv2.morphologyEx(tiles & inside, cv2.MORPH_OPEN, np.ones((_TISSUE_TILES,) * 2, np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(broad, connectivity=8)
    large = [number for number, one in enumerate(stats) if number and one[4] >= _TISSUE_SHARE * tiles.size]
    tissue = np.isin(labels, large).astype(np.uint8)
    return cv2.dilate(tissue, np.ones((2 * _RIM_TILES + 1,) * 2, np.uint8)) & tiles & inside


def _tiles_of(box: Box) -> tuple[slice, slice]:
    return (
        slice(box.y0 // _TILE_PX, -(-box.y1 // _TILE_PX)),
        slice(box.x0 // _TILE_PX, -(-box.x1 // _TILE_PX)),
    )


def _boxes(tiles: NDArray[np.uint8], width: int, height: int) -> list[Box]:
    """Boxes in pixels around tiles that touch each other."""
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats(tiles, connectivity=8)
    return [
        Box(
            x * _TILE_PX,
            y * _TILE_PX,
            min(width, (x + w) * _TILE_PX),
            min(height, (y + h) * _TILE_PX),
        )
        for x, y, w, h, _ in stats[1:].tolist()
    ]


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
