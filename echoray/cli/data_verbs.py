"""``echoray data``: from raw studies to shards."""

from __future__ import annotations

import typer

from echoray.cli import dedup_verbs, deid_verbs, exchange_verbs, instruct_verbs, review_verbs
from echoray.cli.data_forget import forget
from echoray.cli.data_statistics import stats
from echoray.cli.deid_audit import deid_audit
from echoray.cli.options import ConfigOption, SetOption, WorkspaceOption, resolve

app = typer.Typer(help="Make, de-identify, split and tokenize studies.", no_args_is_help=True)
app.add_typer(instruct_verbs.app, name="instruct")
app.add_typer(review_verbs.app, name="review")
app.command()(forget)
app.command()(stats)
app.command("validate")(exchange_verbs.validate)
app.command("export")(exchange_verbs.export)
app.command("dedup")(dedup_verbs.dedup)
app.command("deid-dicom")(deid_verbs.deid_dicom)
app.command("deid-review")(deid_verbs.deid_review)
app.command("deid-audit")(deid_audit)


@app.command()
def corpus(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Write the synthetic corpus and the package samples as DICOM."""
    from echoray.cli.steps import pipeline, tell

    with pipeline(resolve(config, overrides, workspace)) as steps:
        if steps.corpus is None:
            typer.echo("nothing to write: data.source.phantom and data.source.package_samples are off")
        else:
            tell(steps, steps.corpus)


@app.command()
def prepare(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """De-identify, filter and split the studies; print the ledger."""
    from echoray.cli.steps import pipeline, tell
    from echoray.cli.tables import print_ledger

    with pipeline(resolve(config, overrides, workspace)) as steps:
        tell(steps, steps.studies)
        print_ledger(steps, steps.studies)


@app.command()
def tokenize(
    config: ConfigOption = "tiny", overrides: SetOption = None, workspace: WorkspaceOption = None
) -> None:
    """Build conversations and tokenize them to Parquet shards; print the ledger."""
    from echoray.cli.steps import pipeline, tell
    from echoray.cli.tables import print_ledger

    with pipeline(resolve(config, overrides, workspace)) as steps:
        tell(steps, steps.shards)
        print_ledger(steps, steps.studies, steps.shards)
