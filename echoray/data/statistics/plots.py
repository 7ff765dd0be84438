"""Plots as inline SVG: text in the page's own colour and font, ids that no other plot has."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING

from echoray.data.statistics.distribution import Distribution, bin_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # told apart by colour-blind readers (Okabe and Ito)
_INK = "#010203"  # stands for the page's text colour
_WIDTH_IN, _ROW_IN, _HISTOGRAM_IN = 8.0, 0.32, 2.6
_MAX_BINS = 40


def stacked_bars(name: str, title: str, counts: Mapping[str, Mapping[str, int]], unit: str) -> str:
    """Horizontal bars, ``counts`` by bar and part, each labelled with its total as Figure 3 of the paper."""
    totals = {label: sum(parts.values()) for label, parts in counts.items()}
    if not any(totals.values()):
        return ""
    figure, axes = _figure(1.1 + _ROW_IN * len(counts))
    places = range(len(counts))
    left = [0] * len(counts)
    parts = list(dict.fromkeys(part for one in counts.values() for part in one))
    for part, colour in zip(parts, cycle(_COLOURS), strict=False):
        widths = [one.get(part, 0) for one in counts.values()]
        axes.barh(places, widths, left=left, color=colour, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [f"{label} ({total:,})" for label, total in totals.items()])
    axes.invert_yaxis()
    return _finished(figure, axes, name, title, unit, legend=len(parts) > 1)


def histogram(name: str, title: str, distributions: Mapping[str, Distribution], unit: str, of: str) -> str:
    """Stacked columns over equal ranges of values; ``of`` says what is counted."""
    from matplotlib.ticker import MaxNLocator

    filled = {label: one for label, one in distributions.items() if one.num_values}
    if not filled:
        return ""
    first = min(one.quantile(0) for one in filled.values())
    last = max(one.quantile(1) for one in filled.values())
    width = bin_width(first, last, _MAX_BINS)
    start = first // width * width
    figure, axes = _figure(_HISTOGRAM_IN)
    bottom = [0] * len(range(start, last + 1, width))
    for (label, one), colour in zip(filled.items(), cycle(_COLOURS), strict=False):
        bins = one.bins(width, start, last)
        centres = [(found.first + found.last) / 2 for found in bins]
        heights = [found.count for found in bins]
        axes.bar(centres, heights, width=0.92 * width, bottom=bottom, color=colour, label=label)
        bottom = [under + height for under, height in zip(bottom, heights, strict=True)]
    axes.set_ylabel(of)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axes, name, title, unit, legend=len(filled) > 1)


def _figure(height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    return figure, axes


def _finished(figure: Figure, axes: Axes, name: str, title: str, unit: str, *, legend: bool) -> str:
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(unit, color=_INK)
    axes.yaxis.label.set_color(_INK)
    if legend:
        figure.legend(frameon=False, labelcolor=_INK, loc="outside upper right", ncols=len(_COLOURS))
    target = io.StringIO()
    # Fixed ids and no date: the same counts are the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return _inline(target.getvalue(), name, title)


def _inline(document: str, name: str, title: str) -> str:
    """The <svg> element of a document, without its prolog, metadata and fixed size."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'((?<![\w-])id="|url\(#|xlink:href="#)', rf"\1{name}-", svg)
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
