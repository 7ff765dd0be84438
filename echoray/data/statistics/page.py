"""statistics.html: what the data of a run is, in plots and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from echoray.data.statistics.collect import Statistics
from echoray.data.statistics.distribution import Distribution
from echoray.data.statistics.plots import histogram, stacked_bars
from echoray.page import whole_page
from echoray.types import SPLITS, SYSTEMS, TASKS

_NOTICE = "Counts only: neither pictures nor texts of patients are shown."
_CHARACTERS = "report_characters_"
_TOKENS = {"tokens": "of an example", "image_tokens": "of images", "answer_tokens": "of the answer"}
_LENGTH_TITLES = {
    "images_per_study": "Images per study",
    "tokens": "Tokens of an example",
    "image_tokens": "of these, of images",
    "answer_tokens": "of these, of the answer",
}
_MAX_SIZES = 12

Cell = str | int | float


def render_page(name: str, found: Statistics) -> str:
    """The page of a run called ``name``: one file, plots inside it."""
    sections = [
        _overview(found),
        _cases(found),
        _images(found),
        _texts(found),
        _examples(found),
        _kept(found),
    ]
    return whole_page(f"Data of {name}", _NOTICE, "\n".join(sections))


def _overview(found: Statistics) -> str:
    rows: list[list[Cell]] = [
        ["Patients", found.num_patients],
        ["Studies", sum(one.num_studies for one in found.cases)],
        ["Images", sum(one.num_images for one in found.cases)],
        ["Examples", sum(one.num_examples for one in found.examples)],
        ["Examples with a truncated answer", sum(one.num_truncated for one in found.examples)],
        ["Tokens", sum(one.num_tokens for one in found.examples)],
        ["of these learned (answers)", sum(one.num_answer_tokens for one in found.examples)],
    ]
    made_from = f"<p>From <code>{escape(found.studies)}</code> and <code>{escape(found.shards)}</code>.</p>"
    return made_from + _table((), rows)


def _cases(found: Statistics) -> str:
    title = "Cases by anatomical system"
    by_system: dict[str, dict[str, int]] = {
        system: {split: _studies(found, system=system, split=split) for split in SPLITS} for system in SYSTEMS
    }
    rows: list[list[Cell]] = [
        [system, *parts.values(), sum(parts.values()), _images_of(found, system)]
        for system, parts in by_system.items()
    ]
    origin = Counter[tuple[str, str]]()
    for one in found.cases:
        origin[one.language, one.source] += one.num_studies
    return (
        f"<h2>{title}</h2>"
        + _figure(stacked_bars("cases", title, by_system, "studies"))
        + _table(("System", *SPLITS, "all", "images"), rows)
        + "<h3>Languages and sources</h3>"
        + _table(("Language", "Source", "Studies"), [[*key, num] for key, num in sorted(origin.items())])
    )


def _studies(found: Statistics, *, system: str, split: str) -> int:
    return sum(one.num_studies for one in found.cases if (one.system, one.split) == (system, split))


def _images_of(found: Statistics, system: str) -> int:
    return sum(one.num_images for one in found.cases if one.system == system)


def _images(found: Statistics) -> str:
    common = sorted(found.pictures, key=lambda one: -one.num_images)
    sizes = {f"{one.width_px} x {one.height_px}": {"": one.num_images} for one in common[:_MAX_SIZES]}
    left = len(common) - _MAX_SIZES
    note = f"<p>{left} rarer sizes are in image_sizes.csv.</p>" if left > 0 else ""
    per_study = {"": found.lengths.get("images_per_study", Distribution({}))}
    return (
        "<h2>Images</h2>"
        + _figure(histogram("per-study", "Images per study", per_study, "images per study", "studies"))
        + _figure(
            stacked_bars("sizes", "Image sizes, most frequent first", sizes, "images (width x height, px)")
        )
        + note
    )


def _texts(found: Statistics) -> str:
    lengths = {
        name.removeprefix(_CHARACTERS): one
        for name, one in found.lengths.items()
        if name.startswith(_CHARACTERS)
    }
    title = "Length of the reports"
    return f"<h2>{title}</h2>" + _figure(histogram("reports", title, lengths, "characters", "reports"))


def _examples(found: Statistics) -> str:
    title = "Examples by task"
    by_task: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    truncated = Counter[str]()
    for one in found.examples:
        by_task[one.task][one.split] += one.num_examples
        truncated[one.task] += one.num_truncated
    ordered: dict[str, dict[str, int]] = {
        task: {split: parts[split] for split in SPLITS} for task, parts in by_task.items()
    }
    rows: list[list[Cell]] = [
        [task, *parts.values(), sum(parts.values()), truncated[task]] for task, parts in ordered.items()
    ]
    plots = [
        _figure(
            histogram(
                name,
                f"Tokens {of}",
                {"": found.lengths.get(name, Distribution({}))},
                f"tokens {of}",
                "examples",
            )
        )
        for name, of in _TOKENS.items()
    ]
    return (
        f"<h2>{title}</h2>"
        + _figure(stacked_bars("tasks", title, ordered, "examples"))
        + _table(("Task", *SPLITS, "all", "truncated"), rows)
        + "<h2>Lengths</h2>"
        + _length_table(found.lengths)
        + "".join(plots)
    )


def _length_table(lengths: Mapping[str, Distribution]) -> str:
    titles = {
        name: f"Characters of a report ({name.removeprefix(_CHARACTERS)})"
        for name in lengths
        if name.startswith(_CHARACTERS)
    }
    shown = {name: title for name, title in (titles | _LENGTH_TITLES).items() if name in lengths}
    head = ("", *Distribution({}).summary())
    return _table(head, [[title, *lengths[name].summary().values()] for name, title in shown.items()])


def _kept(found: Statistics) -> str:
    reasons = {
        f"{row['step']}: {reason}": {"": count}
        for row in found.ledger
        for reason, count in row["quarantined"].items()
    }
    rows: list[list[Cell]] = [
        [
            row["step"],
            row["records_in"],
            row["records_out"],
            sum(row["quarantined"].values()),
            ", ".join(f"{name} {count}" for name, count in row["shortened"].items() if count),
        ]
        for row in found.ledger
    ]
    return (
        "<h2>Ledger and quarantine</h2><p>In each step in = out + quarantined.</p>"
        + _table(("Step", "in", "out", "quarantined", "shortened"), rows)
        + _figure(stacked_bars("quarantine", "Quarantined records by step and reason", reasons, "records"))
    )


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>" if svg else "<p>None.</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    heads = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    lines = "\n".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(one)}</td>" for one in rest)}</tr>'
        for first, *rest in rows
    )
    thead = f"<thead><tr>{heads}</tr></thead>" if head else ""
    return f"<table>{thead}<tbody>\n{lines}\n</tbody></table>" if lines else "<p>None.</p>"


def _text(cell: Cell) -> str:
    return f"{cell:,}" if isinstance(cell, int | float) else escape(cell)
