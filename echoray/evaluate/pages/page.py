"""report.html: one file that needs no server and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from string import Template

from echoray.config import RunConfig
from echoray.evaluate.pages.table import METRIC_TITLES, NOTE, TASK_TITLES, table_lines
from echoray.evaluate.report import AVERAGE, EvalReport, Row
from echoray.page import whole_page

_NOTICE = """Generated reports are drafts for a
clinician, who remains responsible for every statement."""


def render_html(run: RunConfig, report: EvalReport, pictures: Sequence[bytes]) -> str:
    """The page with tables, system naming, models and the case pictures (PNG) embedded."""
    template = resources.files("echoray.evaluate.pages") / "report.html"
    body = Template(template.read_text(encoding="utf-8")).substitute(
        note=escape(NOTE),
        test_digest=escape(report.test_digest[:12]),
        seed=run.seed,
        tables="\n".join(_table(report, task) for task in report.counts),
        naming=_naming(report),
        models="\n".join(_model(label, digest) for label, digest in report.models.items()),
        cases="\n".join(_picture(number, png) for number, png in enumerate(pictures, start=1)),
    )
    return whole_page(f"Evaluation of {run.name}", _NOTICE, body)


def _table(report: EvalReport, task: str) -> str:
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in report.models)
    body = "\n".join(_lines(report, task))
    return (
        f"<h2>{TASK_TITLES[task]}</h2>\n<p>{report.counts[task]} examples</p>\n<table>\n"
        f'<thead><tr><th scope="col">Anatomical</th><th scope="col">Metric</th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _lines(report: EvalReport, task: str) -> Iterator[str]:
    for number, (system, metric, rows) in enumerate(table_lines(report, task)):
        first = number % len(METRIC_TITLES) == 0
        head = f'<th scope="rowgroup" rowspan="{len(METRIC_TITLES)}">{escape(system)}</th>' if first else ""
        best = max(row.mean for row in rows)
        cells = "".join(_cell(row, row.mean == best and len(rows) > 1) for row in rows)
        kind = ' class="average"' if rows[0].system == AVERAGE else ""
        yield f'<tr{kind}>{head}<th scope="row">{metric}</th>{cells}</tr>'


def _cell(row: Row, is_best: bool) -> str:
    mean = f"<b>{row.mean:.2f}</b>" if is_best else f"{row.mean:.2f}"
    interval = f" <small>[{row.interval[0]:.1f}, {row.interval[1]:.1f}]</small>" if row.interval else ""
    return f"<td>{mean}{interval}</td>"


def _naming(report: EvalReport) -> str:
    return "\n".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{100 * share:.1f}%</td></tr>'
        for label, share in report.system_accuracy.items()
    )


def _model(label: str, digest: str) -> str:
    return f'<tr><th scope="row">{escape(label)}</th><td><code>{escape(digest[:16])}</code></td></tr>'


def _picture(number: int, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    text = f"Case {number}: frames beside the reference and the generated drafts"
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
