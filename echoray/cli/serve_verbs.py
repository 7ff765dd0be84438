"""``echoray serve``: API keys and the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

app = typer.Typer(help="Serve a model and ask it.", no_args_is_help=True)


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="File of accepted key hashes; the new hash is appended.")],
) -> None:
    """Make an API key: print it once and append its SHA-256 to FILE (mode 0600)."""
    from echoray.serve.auth import append_hash, new_api_key

    plain, digest = new_api_key()
    append_hash(file, digest)
    typer.echo(plain)


@app.command()
def start(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Serve the stage 2 model until Ctrl-C (makes what is missing first)."""
    from echoray.cli.serving import serve_until_interrupted
    from echoray.cli.steps import pipeline
    from echoray.serve.preflight import require_startable

    run = resolve(config, overrides, workspace)
    require_startable(run.serve, run.cluster)  # before anything is trained
    with pipeline(run) as steps:
        serve_until_interrupted(steps)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="A PNG or JPEG frame without patient data.")],
    prompt: Annotated[str, typer.Argument()] = "Write the ultrasound report for these images.",
    url: Annotated[str, typer.Option(help="Address of the endpoint.")] = "http://127.0.0.1:8080",
    model: Annotated[str, typer.Option(help="Model name.")] = "echovlm",
    key_env: Annotated[str, typer.Option(help="Variable that holds the API key.")] = "ECHORAY_API_KEY",
) -> None:
    """Send one frame and a question to a running endpoint and print the draft answer."""
    from echoray.config import secret
    from echoray.errors import InputDataError
    from echoray.serve.client import ask as send

    try:
        content = image.read_bytes()
    except OSError as error:
        raise InputDataError(f"{image}: {error.strerror}", hint="name a PNG or JPEG file") from None
    typer.echo(send(url, secret(f"env:{key_env}"), model, prompt, content))
