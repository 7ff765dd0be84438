"""Held-out evaluation: greedy generation, text metrics with intervals, system naming, pages."""

from echoray.evaluate.compute import evaluate, load_report
from echoray.evaluate.examples import Case, sample_case
from echoray.evaluate.report import EvalReport

__all__ = ["Case", "EvalReport", "evaluate", "load_report", "sample_case"]
