"""The figures laid out as in She et al., EchoVLM, Tables 2 to 4: systems by metric, one column per model."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from echoray.evaluate.report import AVERAGE, EvalReport, Row

TASK_TITLES = MappingProxyType(
    {
        "report": "Report generation",
        "diagnosis": "Ultrasound diagnosis",
        "vqa": "Visual question answering",
    }
)
METRIC_TITLES = MappingProxyType({"bleu_1": "BLEU-1", "rouge_1": "ROUGE-1", "rouge_l": "ROUGE-L"})
NOTE = (
    "Held-out patients, greedy decoding. Scores are 0-100 and means over examples; the average is the "
    "unweighted mean over systems. Brackets: 95% bootstrap interval over studies. Overlap with a reference "
    "text is not clinical correctness. Research software, not a medical device."
)


def table_lines(report: EvalReport, task: str) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield (system title, metric title, one Row per model), the averages last."""
    for system in [*report.systems(task), AVERAGE]:
        for metric, title in METRIC_TITLES.items():
            rows = [report.row(label, task, metric, system) for label in report.models]
            yield system.capitalize(), title, rows


def render_table(report: EvalReport) -> str:
    """table.md: one Markdown table per task, columns padded so that it also reads well as plain text."""
    parts = []
    for task, count in report.counts.items():
        lines = [
            [system, metric, *(_cell(row) for row in rows)]
            for system, metric, rows in table_lines(report, task)
        ]
        header = ["Anatomical", "Metric", *report.models]
        parts.append(f"### {TASK_TITLES[task]} ({count} examples)\n\n{_markdown(header, lines)}")
    if report.system_accuracy:
        lines = [[label, f"{100 * share:.1f}%"] for label, share in report.system_accuracy.items()]
        parts.append(f"### Reports that name the right system\n\n{_markdown(['Model', 'Share'], lines)}")
    return "\n\n".join([*parts, NOTE]) + "\n"


def _cell(row: Row) -> str:
    if row.system != AVERAGE or row.interval is None:
        return f"{row.mean:.2f}"
    return f"{row.mean:.2f} [{row.interval[0]:.1f}, {row.interval[1]:.1f}]"


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [header, rule, *lines]
    )
