"""What people read: the table, the page and the case pictures."""

from echoray.evaluate.pages.page import render_html
from echoray.evaluate.pages.pictures import draw_case
from echoray.evaluate.pages.table import render_table

__all__ = ["draw_case", "render_html", "render_table"]
