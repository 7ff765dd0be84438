"""``echoray data forget``: a patient's right to be forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

if TYPE_CHECKING:
    from echoray.config import DataConfig
    from echoray.platform.forget import Traces

_KEY_LENGTH = 64


def forget(
    config: ConfigOption = "tiny",
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    patient_key: Annotated[
        str | None,
        typer.Option(help="The patient's keyed hash; else you are asked for the PatientID."),
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete the versions with the patient's texts and pictures.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
) -> None:
    """Make a version of the studies without a patient; name every model that was trained on them."""
    from echoray.cli.steps import pipeline
    from echoray.platform import forget as forgetting

    run = resolve(config, overrides, workspace)
    key = _checked(patient_key) if patient_key else _asked(run.data)
    if purge and not yes:
        typer.confirm("delete every version of studies, shards and evaluations that holds them?", abort=True)
    with pipeline(run) as steps:
        found = forgetting.forget(run, steps.store, key)
        typer.echo(f"patient {key}")
        typer.echo(f"version without them: {steps.store.uri(steps.studies.path)}")
        _tell(found)
        if purge:
            forgetting.purge(steps.store, found)
            typer.echo(f"deleted {len(found.with_data)} artifacts")
    typer.echo("The archive itself is not touched; weights are kept until you delete or retrain them.")


def _checked(patient_key: str) -> str:
    if len(patient_key) != _KEY_LENGTH or set(patient_key) - set("0123456789abcdef"):
        raise typer.BadParameter(
            "expected the 64 hex digits of a patient_key, not a PatientID", param_hint="--patient-key"
        )
    return patient_key


def _asked(data: DataConfig) -> str:
    """The keyed hash of a PatientID (0010,0020), which is asked for so that no shell history keeps it."""
    from echoray.data.deidentify.keys import keyed_hash
    from echoray.data.prepare import deid_key

    key = deid_key(data)
    return keyed_hash(key, typer.prompt("PatientID", hide_input=True).strip())


def _tell(found: Traces) -> None:
    if not found.artifacts:
        typer.echo("no version held them; later ones will not either")
    for title, refs in (("holds their data", found.with_data), ("made from it", found.weights)):
        for ref in refs:
            typer.echo(f"{title}: {ref.path}")
    for version in found.versions:
        alias = f" ({version.alias})" if version.alias else ""
        typer.echo(f"registered: {version.name} version {version.version}{alias}")
