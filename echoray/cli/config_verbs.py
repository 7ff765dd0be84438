"""``echoray config``: show, compare and describe the configuration tree."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from echoray.cli.options import ConfigOption, SetOption, resolve

app = typer.Typer(help="Show, compare and describe the configuration tree.", no_args_is_help=True)


@app.command()
def show(config: ConfigOption = "tiny", overrides: SetOption = None) -> None:
    """Print the resolved configuration as YAML, its digest first."""
    import yaml

    from echoray.config import run_digest

    run = resolve(config, overrides)
    typer.echo(f"# digest {run_digest(run)}")
    typer.echo(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(help="Preset or YAML file.")],
    right: Annotated[str, typer.Argument(help="Preset or YAML file.")],
) -> None:
    """Print the keys in which two configurations differ; exit code 1 when they do."""
    a, b = (_flat(resolve(name, None).model_dump(mode="json")) for name in (left, right))
    changed = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    for key in changed:
        typer.echo(f"{key}: {a.get(key)!r} -> {b.get(key)!r}")
    if changed:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration (for editors and CI)."""
    import json

    from echoray.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
