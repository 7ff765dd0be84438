"""The review sheet: sampled frames before and after, with the decision about every piece of text.

"Before" shows patient data: the sheet goes to a local folder that nobody else can open, and nowhere else.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files as resource_files
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from echoray.config import RunConfig
from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.header import identifiers
from echoray.data.deidentify.pixels import RedactedFrame, TextBox
from echoray.data.frames import png
from echoray.data.phantom import synthesize_study
from echoray.data.phantom.dicom import image_dataset
from echoray.data.phantom.fonts import load_font
from echoray.data.sources.conversations import CONVERSATIONS, read_conversation
from echoray.data.sources.dicom import key_frames, read_regions
from echoray.data.sources.dicomweb import list_dicomweb
from echoray.data.sources.image_report import IMAGE_REPORT, read_image_report
from echoray.data.sources.index import ARCHIVE, CORPUS, DICOMWEB, PACKAGE, StudyFiles, list_source
from echoray.data.sources.pixels import to_rgb
from echoray.data.sources.quiet import without_warnings
from echoray.data.sources.samples import package_samples
from echoray.data.sources.tables import list_tables
from echoray.errors import EchoRayError, InputDataError, UsageError
from echoray.storage import open_store, store_at
from echoray.types import Box, Frame, Progress

PAGE = "review.html"
# Removed in reds, kept in greens and blues; an unlisted category takes the first colour of its side.
_REMOVED = {
    "other": "#ef4444", "known": "#b91c1c", "person": "#dc2626", "identifier": "#ea580c", "date": "#d97706",
    "clock": "#ca8a04", "institution": "#db2777", "phone": "#c026d3", "address": "#9333ea",
    "age_sex": "#f472b6", "unknown": "#f87171", "unreadable": "#fb923c",
}  # fmt: skip
_KEPT = {
    "other": "#22c55e", "measurement": "#16a34a", "anatomy": "#0d9488", "setting": "#2563eb",
    "scale": "#0891b2", "texture": "#9ca3af",
}  # fmt: skip
_LABEL_PX = 12


# A picture and the identifying strings that come with it; raises whatever a damaged file makes it raise.
_Opened = tuple[Frame, tuple[str, ...]]


@dataclass(frozen=True)
class _Candidate:
    source: str
    open: Callable[[], _Opened]


def write_review(run: RunConfig, out: Path, num_frames: int, progress: Progress) -> Path:
    """Write ``review.html`` and its PNGs into ``out`` (mode 0700); the page's path.

    The frames are an even, seeded sample of the configured sources: one key frame of each file drawn.
    """
    candidates = _candidates(run)
    _make_private(run, out)
    deidentifier = Deidentifier()
    sections: list[str] = []
    boxes: list[TextBox] = []
    num_unreadable = 0
    for candidate in candidates:
        if len(sections) == num_frames:
            break
        found = _frame(candidate)
        if found is None:
            num_unreadable += 1
            continue
        before, known = found
        (after,) = deidentifier.redact_frames((before,), known)
        number = len(sections) + 1
        for side, frame in (("before", before), ("after", after.frame)):
            drawn = _with_boxes(frame.pixels, after.boxes, labels=side == "before")
            _write(out / f"{number:03d}-{side}.png", png(drawn))
        sections.append(_section(number, candidate.source, after))
        boxes += after.boxes
        progress("reviewed frames", number, num_frames)
    if not sections:
        raise InputDataError(
            f"no frame to review: {num_unreadable} records hold no readable ultrasound picture",
            hint="check data.source",
        )
    _write(out / PAGE, _page(sections, boxes, num_unreadable).encode())
    return out / PAGE


def _candidates(run: RunConfig) -> Iterator[_Candidate]:
    """Files and records of all sources in a seeded order, the sources taking turns."""
    draw = random.Random(run.seed)
    groups = [*_dicom(run), *_tables(run), _phantoms(run)]
    for group in groups:
        draw.shuffle(group)
    return (group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group))


def _dicom(run: RunConfig) -> Iterator[list[_Candidate]]:
    for number, uri in enumerate(run.data.source.dicom_uris):
        files = list_source(store_at(run, uri), ARCHIVE, number).files
        yield [_Candidate(f"{ARCHIVE} {number}", partial(_opened, one.read_bytes)) for one in files]
    for number, service in enumerate(run.data.source.dicomweb):
        files = list_dicomweb(service, number).files
        yield [_Candidate(f"{DICOMWEB} {number}", partial(_opened, one.read_bytes)) for one in files]
    if run.data.source.package_samples:
        yield [_Candidate(PACKAGE, partial(_opened, one.read_bytes)) for one in package_samples()]


def _tables(run: RunConfig) -> Iterator[list[_Candidate]]:
    readers = {IMAGE_REPORT: read_image_report, CONVERSATIONS: read_conversation}

    def first(files: StudyFiles) -> _Opened:
        read = readers[files.kind]
        study, _ = read(files, key=b"", language=run.data.language, max_frames=run.data.max_frames)
        if study is None:
            raise ValueError("no study")
        return study.frames[0], study.identifiers

    for listing in list_tables(run):
        yield [_Candidate(one.kind, partial(first, one)) for one in listing.studies]


def _phantoms(run: RunConfig) -> list[_Candidate]:
    settings = run.data.source.phantom
    if settings is None:
        return []
    width, height = settings.width, settings.height

    def made(number: int) -> _Opened:
        study = synthesize_study(
            number, seed=run.seed, language=run.data.language, width=width, height=height
        )
        return study.frames[0], identifiers(image_dataset(study, 0))

    return [_Candidate(CORPUS, partial(made, number)) for number in range(settings.num_studies)]


def _opened(read: Callable[[], bytes | None]) -> _Opened:
    """A DICOM file's first key frame."""
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(read() or b""))
    (pixels,) = to_rgb(dataset, key_frames(dataset, 1)[:1])
    return Frame(pixels, read_regions(dataset)), identifiers(dataset)


def _frame(candidate: _Candidate) -> _Opened | None:
    """The candidate's picture and strings, or None where there is no such thing."""
    with without_warnings():
        try:
            return candidate.open()
        except EchoRayError:  # a store that does not answer
            raise
        except Exception:  # a damaged file may raise anything, and what was raised may quote it
            return None


def _make_private(run: RunConfig, out: Path) -> None:
    workspace = open_store(run.workspace).local()
    place = out.resolve()  # past links
    if workspace is not None and workspace.resolve() in (place, *place.parents):
        raise UsageError(
            "--out lies in the workspace, expected a folder outside: the sheet shows patient data",
            hint="name a local folder that is neither shared nor uploaded",
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / PAGE).exists())):
        raise UsageError(
            "--out is in use, expected a new folder, an empty one or an earlier sheet", hint="name another"
        )
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    out.chmod(0o700)
    for old in (*out.glob("[0-9]*-before.png"), *out.glob("[0-9]*-after.png")):
        old.unlink()


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _with_boxes(
    pixels_HW3: NDArray[np.uint8], boxes: Sequence[TextBox], *, labels: bool
) -> NDArray[np.uint8]:
    """A copy with an outline around each box and, where there is room beside all text, its category."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(pixels_HW3)
    draw = ImageDraw.Draw(picture)
    font = load_font("en", _LABEL_PX)
    taken = [one.box for one in boxes]
    for one in boxes:
        colour, box = _colour(one.category, one.kept), one.box
        draw.rectangle((box.x0 - 2, box.y0 - 2, box.x1 + 1, box.y1 + 1), outline=colour, width=1)
        label = f"{'+' if one.kept else '-'} {one.category}"
        width = round(draw.textlength(label, font=font)) + 4
        place = _free_place(box, width, taken, picture.size) if labels else None
        if place is not None:
            taken.append(place)
            draw.rectangle((place.x0, place.y0, place.x1 - 1, place.y1 - 1), fill=colour)
            draw.text((place.x0 + 2, place.y0), label, fill="#ffffff", font=font)
    return np.asarray(picture)


def _free_place(box: Box, width: int, taken: Sequence[Box], size: tuple[int, int]) -> Box | None:
    """Right, left, below or above of ``box``, within the picture and over no other text or label."""
    height = _LABEL_PX + 4
    for x, y in (
        (box.x1 + 2, box.y0),
        (box.x0 - 2 - width, box.y0),
        (box.x0, box.y1 + 2),
        (box.x0, box.y0 - 2 - height),
    ):
        place = Box(x, y, x + width, y + height)
        inside = x >= 0 and y >= 0 and place.x1 <= size[0] and place.y1 <= size[1]
        if inside and not any(
            place.x0 < other.x1 and other.x0 < place.x1 and place.y0 < other.y1 and other.y0 < place.y1
            for other in taken
        ):
            return place
    return None


def _colour(category: str, kept: bool) -> str:
    colours: Mapping[str, str] = _KEPT if kept else _REMOVED
    return colours.get(category, colours["other"])


def _section(number: int, source: str, result: RedactedFrame) -> str:
    sides = "".join(
        f'<figure><a href="{number:03d}-{side}.png"><img src="{number:03d}-{side}.png" '
        f'alt="Frame {number} {side}"></a><figcaption>{side.capitalize()}</figcaption></figure>'
        for side in ("before", "after")
    )
    return (
        f"<section><h2>Frame {number} <small>{escape(source)}</small></h2>"
        f'<p>{_counts(result.boxes)}</p><div class="pair">{sides}</div></section>'
    )


def _counts(boxes: Sequence[TextBox]) -> str:
    parts = []
    for title, kept in (("removed", False), ("kept", True)):
        counts = Counter(one.category for one in boxes if one.kept == kept)
        named = ", ".join(f"{escape(name)} {count}" for name, count in sorted(counts.items()))
        parts.append(f"{title}: {named or 'nothing'}")
    return "; ".join(parts)


def _page(sections: Sequence[str], boxes: Sequence[TextBox], num_unreadable: int) -> str:
    shown = sorted({(one.kept, one.category) for one in boxes})
    legend = "".join(
        f'<span><i style="background:{_colour(category, kept)}"></i>{"kept" if kept else "removed"}: '
        f"{escape(category)}</span>"
        for kept, category in shown
    )
    skipped = (
        f" {num_unreadable} records without a readable picture were passed over." if num_unreadable else ""
    )
    template = resource_files("echoray.data.deidentify").joinpath(PAGE).read_text(encoding="utf-8")
    return Template(template).substitute(
        summary=f"{len(sections)} frames, {len(boxes)} pieces of text; {_counts(boxes)}.{skipped}",
        legend=legend,
        frames="\n".join(sections),
    )
