"""The frame of the pages that steps write: one file each, which loads nothing from elsewhere."""

from __future__ import annotations

from html import escape
from importlib import resources
from string import Template


def whole_page(title: str, notice: str, body: str) -> str:
    """An HTML document; ``title`` is text, ``notice`` and ``body`` are HTML without scripts."""
    template = (resources.files("echoray") / "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), notice=notice, body=body)
