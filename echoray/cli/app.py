"""The verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from echoray import __version__
from echoray.cli import config_verbs, data_verbs, model_verbs, serve_verbs, train_verbs
from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

app = typer.Typer(
    name="echoray",
    help="From a hospital's ultrasound archive to a trained EchoVLM and a reporting endpoint.\n\n"
    "Research software, not a medical device: generated reports are drafts for a clinician.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(config_verbs.app, name="config")
app.add_typer(data_verbs.app, name="data")
app.add_typer(train_verbs.app, name="train")
app.add_typer(model_verbs.app, name="model")
app.add_typer(serve_verbs.app, name="serve")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"echoray {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Set what holds for every verb."""


@app.command()
def demo(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    language: Annotated[str | None, typer.Option(help="Language of the synthetic studies: en or zh.")] = None,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave the endpoint up until Ctrl-C.")
    ] = False,
) -> None:
    """Run the whole main job: raw studies in, a served model and an answered request out."""
    from echoray.cli.demo import run_demo

    extra = [f"data.language={language}"] if language else []
    run_demo(resolve(config, [*(overrides or []), *extra], workspace), keep_serving=keep_serving)


@app.command()
def evaluate(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Evaluate base, stage 1 and stage 2 on held-out patients (makes what is missing first)."""
    from echoray.cli.steps import pipeline
    from echoray.cli.tables import print_evaluation

    with pipeline(resolve(config, overrides, workspace)) as steps:
        print_evaluation(steps)


@app.command()
def doctor(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Check this machine: versions, memory, disk, storage, base model, accelerator."""
    from echoray.cli.tables import print_checks
    from echoray.platform.doctor import diagnose

    if not print_checks(diagnose(resolve(config, overrides, workspace))):
        raise typer.Exit(1)


def run_app() -> NoReturn:
    """Run the command line and leave with the right exit code; a user's mistake never shows a traceback."""
    from echoray.platform.failures import INTERRUPTED, terminated_like_interrupted

    with terminated_like_interrupted():
        try:
            code = app(standalone_mode=False)
            if code == INTERRUPTED.exit_code:  # typer swallows Ctrl-C and keeps only this
                raise KeyboardInterrupt
            sys.exit(code if isinstance(code, int) else 0)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (Exception, KeyboardInterrupt) as error:
            _explain(error)


def _explain(error: Exception | KeyboardInterrupt) -> NoReturn:
    from echoray.cli.console import fail
    from echoray.platform.failures import INTERRUPTED, ending_of

    if isinstance(error, typer.TyperException) and hasattr(error, "show"):
        error.show()  # a wrong option or argument: usage and reason
        sys.exit(2)
    ending = INTERRUPTED if isinstance(error, typer.Abort) else ending_of(error)
    if ending is None:
        raise error
    fail(ending.message, ending.hint)
    sys.exit(ending.exit_code)
