"""How makers of scanners lay out their screens: bars, columns and corners, as shares of the frame."""

from __future__ import annotations

from dataclasses import dataclass

from echoray.types import Language

Shares = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Stack:
    """Lines below one another from (x, y); a line of several kinds, "a|b", is one of them."""

    x: float
    y: float
    lines: tuple[str, ...]
    anchor: str = "l"  # which side of the text stands at x: l, m or r


@dataclass(frozen=True)
class Style:
    """One maker's screen: where the scan lies, filled bars, and stacks of lines."""

    name: str
    scan: Shares
    stacks: tuple[Stack, ...]
    bars: tuple[Shares, ...] = ()
    languages: tuple[Language, ...] = ("en", "zh")


_LABELS = (
    Stack(0.5, 0.955, ("anatomy",), "m"),
    Stack(0.01, 0.86, ("measurement", "measurement", "measurement")),
)
_LEFT_SETTINGS = Stack(0.01, 0.16, ("setting", "setting", "setting", "setting|index", "setting"))

STYLES = (
    Style(
        "two-row bar",
        (0.16, 0.12, 0.93, 0.93),
        (
            Stack(0.01, 0.008, ("name", "identifier|birth_date")),
            Stack(0.42, 0.008, ("identifier|age_sex", "institution")),
            Stack(0.99, 0.008, ("date", "clock|initials"), "r"),
            _LEFT_SETTINGS,
            Stack(0.99, 0.955, ("index",), "r"),
            *_LABELS,
        ),
        ((0, 0, 1, 0.1),),
    ),
    Style(
        "indices in the bar",
        (0.16, 0.13, 0.9, 0.93),
        (
            Stack(0.01, 0.008, ("institution", "name|operator")),
            Stack(0.45, 0.008, ("identifier", "age_sex|birth_date")),
            Stack(0.73, 0.008, ("index", "index|setting")),
            Stack(0.99, 0.008, ("date|clock", "clock|date"), "r"),
            _LEFT_SETTINGS,
            *_LABELS,
        ),
        ((0, 0, 1, 0.105),),
    ),
    Style(
        "one thin line",
        (0.14, 0.1, 0.94, 0.92),
        (
            Stack(0.005, 0.004, ("name",)),
            Stack(0.36, 0.004, ("birth_date|identifier",)),
            Stack(0.99, 0.004, ("date",), "r"),
            Stack(0.99, 0.05, ("index",), "r"),
            Stack(0.01, 0.05, ("setting", "setting", "setting", "setting", "setting", "setting")),
            *_LABELS,
        ),
        ((0, 0, 1, 0.042),),
    ),
    Style(
        "settings at the right",
        (0.06, 0.13, 0.78, 0.92),
        (
            Stack(0.01, 0.01, ("name", "identifier")),
            Stack(0.4, 0.01, ("initials", "clock|date")),
            Stack(0.62, 0.01, ("date", "institution")),
            Stack(0.99, 0.12, ("setting", "setting", "index", "setting", "setting", "index", "setting"), "r"),
            Stack(0.99, 0.72, ("measurement", "measurement", "measurement"), "r"),
            Stack(0.4, 0.94, ("anatomy",), "m"),
            Stack(0.02, 0.94, ("body_mark",)),
        ),
    ),
    Style(
        "column at the left",
        (0.3, 0.06, 0.95, 0.9),
        (
            Stack(
                0.01,
                0.02,
                ("institution", "name", "identifier", "age_sex", "operator|initials", "date", "clock"),
            ),
            Stack(0.01, 0.42, ("setting", "setting", "index", "setting")),
            Stack(0.01, 0.66, ("measurement", "measurement")),
            Stack(0.62, 0.94, ("anatomy",), "m"),
            Stack(0.04, 0.95, ("body_mark",)),
        ),
    ),
    Style(
        "strip at the bottom",
        (0.14, 0.06, 0.92, 0.86),
        (
            Stack(0.01, 0.91, ("name", "identifier")),
            Stack(0.4, 0.91, ("age_sex|birth_date", "institution")),
            Stack(0.99, 0.91, ("date", "clock|operator"), "r"),
            Stack(0.01, 0.03, ("setting", "setting", "index", "setting")),
            Stack(0.5, 0.01, ("anatomy",), "m"),
            Stack(0.01, 0.74, ("measurement", "measurement")),
        ),
        ((0, 0.9, 1, 1),),
    ),
    Style(
        "corners, no bar",
        (0.18, 0.16, 0.82, 0.88),
        (
            Stack(0.02, 0.02, ("institution", "identifier", "name|age_sex")),
            Stack(0.99, 0.02, ("date", "clock", "operator|initials"), "r"),
            Stack(0.5, 0.93, ("anatomy",), "m"),
            Stack(0.99, 0.94, ("index",), "r"),
            Stack(0.02, 0.25, ("setting", "setting", "setting")),
            Stack(0.99, 0.25, ("setting", "setting"), "r"),
            Stack(0.02, 0.82, ("measurement", "measurement")),
            Stack(0.9, 0.78, ("body_mark",)),
        ),
    ),
    Style(
        "over the scan",
        (0.12, 0.02, 0.95, 0.94),
        (
            Stack(0.02, 0.02, ("name", "identifier", "date")),
            Stack(0.98, 0.02, ("institution|operator", "clock", "index"), "r"),
            Stack(0.01, 0.3, ("setting", "setting", "setting")),
            Stack(0.6, 0.9, ("anatomy",), "m"),
            Stack(0.02, 0.88, ("measurement", "measurement")),
        ),
    ),
)
