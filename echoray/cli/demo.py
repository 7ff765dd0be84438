"""``echoray demo``: the whole main job with what it shows on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.panel import Panel

from echoray.cli.console import console
from echoray.cli.serving import Served, served, wait_for_interrupt
from echoray.cli.steps import pipeline
from echoray.cli.tables import print_evaluation, print_ledger

if TYPE_CHECKING:
    from echoray.config import RunConfig
    from echoray.evaluate import EvalReport
    from echoray.platform.pipeline import Pipeline

# What the demo promises of the tiny preset: it must really learn.
MIN_ROUGE_L_GAIN = 20.0
MIN_SYSTEM_ACCURACY = 0.90


def run_demo(run: RunConfig, *, keep_serving: bool) -> None:
    """Run every step that is missing, show what came out, answer one request, stop cleanly."""
    from echoray.serve.preflight import free_port

    started = time.monotonic()
    free_port(run.serve.host, 0)  # a host that is not this machine's, before anything is made
    console.print(
        "EchoRay demo: research software, not a medical device; reports are drafts for a clinician."
    )
    with pipeline(run) as steps:
        _section("1-2  Studies in: de-identify, filter, split, converse, tokenize")
        print_ledger(steps, steps.studies, steps.shards)
        _section("3-4  Base model, upcycle, stage 1 and stage 2")
        _print_training(steps)
        _section("5    Evaluate on held-out patients")
        report = print_evaluation(steps)
        _print_promise(report)
        _section("6    Register and serve")
        version = steps.version
        console.print(f"registered {version.name} version {version.version} ({version.alias})")
        with served(steps, for_demo=True) as endpoint:
            _answer_one_request(steps, endpoint)
            console.print(f"demo finished in {time.monotonic() - started:.0f} s")
            if keep_serving:
                address = f"serving at {endpoint.url}/v1, API key {endpoint.api_key} (Ctrl-C stops)"
                console.print(address, soft_wrap=True)
                wait_for_interrupt()


def _section(title: str) -> None:
    console.print(f"\n{title}", style="bold")


def _print_training(steps: Pipeline) -> None:
    for label, ref in (("stage 1", steps.align), ("stage 2", steps.finetune)):
        rows = steps.store.read_bytes(f"{ref.path}/metrics.jsonl").decode().splitlines()
        first, last = json.loads(rows[0]), json.loads(rows[-1])
        console.print(
            f"{label}: {last['step']} steps, loss {first['loss']:.3f} -> {last['loss']:.3f}, "
            f"saved {steps.store.uri(ref.path)}",
            soft_wrap=True,
        )


def _print_promise(report: EvalReport) -> None:
    gain = report.mean("stage 2", "report", "rouge_l") - report.mean("base", "report", "rouge_l")
    named = report.system_accuracy["stage 2"]
    console.print(
        f"stage 2 against base: {gain:+.1f} ROUGE-L points (promised: at least {MIN_ROUGE_L_GAIN:.0f}); "
        f"names the right system in {named:.1%} of cases (promised: at least {MIN_SYSTEM_ACCURACY:.0%})"
    )
    if gain < MIN_ROUGE_L_GAIN or named < MIN_SYSTEM_ACCURACY:
        console.print("this run stayed below what the tiny preset promises", style="bold yellow")


def _answer_one_request(steps: Pipeline, endpoint: Served) -> None:
    from echoray.evaluate import sample_case
    from echoray.evaluate.pages import draw_case
    from echoray.serve.client import ask

    case = sample_case(steps.run, steps.shards)
    answer = ask(endpoint.url, endpoint.api_key or "", endpoint.model_name, case.prompt, case.image_png)
    picture = draw_case(case, {"answer (draft)": answer})
    steps.store.write_bytes("demo/answer.png", picture)
    console.print(Columns([Panel(case.reference, title="reference"), Panel(answer, title="answer (draft)")]))
    where = steps.store.local("demo/answer.png") or Path("demo/answer.png")
    console.print(f"frame, reference and answer: {where}", soft_wrap=True)
