"""Registering, promoting and rolling back model versions.

A version points to the model artifact's URI, no weights are copied. The alias "champion" names the version to
serve, "challenger" the newest one that did not win.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from echoray import artifacts
from echoray.config import RunConfig
from echoray.errors import RegistryError
from echoray.registry.record import Figures, lineage_tags, params, read_figures
from echoray.registry.server import database_of, registry_client
from echoray.storage import store_of
from echoray.types import ArtifactRef, ModelVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as Entry

logger = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"

_KIND, _NAME, _DIGEST = "echoray.kind", "echoray.name", "echoray.digest"
_TEST, _SCORE, _DECISION = "echoray.test_digest", "echoray.rouge_l", "echoray.decision"
_FORMER = "echoray.former_champions"  # on the registered model: version numbers, oldest first


def register(run: RunConfig, model: ArtifactRef, evaluation: ArtifactRef) -> ModelVersion:
    """Register ``model`` with its figures; the same artifact always gives the same version.

    It becomes champion where there is none or where it beats the champion's average ROUGE-L of generated
    reports on the same examples, decoded alike, else challenger; the version's tag echoray.decision says why.
    Raises RegistryError where the evaluation has no figures of the model or MLflow fails.
    """
    store = store_of(run)
    artifacts.require(store, model, made_by="echoray model export")
    figures = read_figures(store, evaluation, model)
    name = run.registry.model_name
    with registry_client(run) as client:
        _ensure_model(client, name)
        entry = _find(client, name, model) or _create(client, run, model, evaluation, figures)
        # A version without a decision is what an interrupted registration leaves.
        if _DECISION not in entry.tags:
            _decide(client, entry, figures)
        return _version(client, name, int(entry.version))


def promote(run: RunConfig, version: int) -> ModelVersion:
    """Make ``version`` the champion; RegistryError where it does not exist."""
    name = run.registry.model_name
    with registry_client(run) as client:
        _crown(client, name, int(client.get_model_version(name, str(version)).version))
        return _version(client, name, version)


def rollback(run: RunConfig) -> ModelVersion:
    """Make the champion before this one the champion again; RegistryError where there was none."""
    name = run.registry.model_name
    with registry_client(run) as client:
        current = _aliases(client, name).get(CHAMPION)
        former = _former(client, name)
        if former[-1:] == [current]:  # written by a promotion that was interrupted before the alias moved
            former.pop()
        if not former:
            raise RegistryError(
                f"{name} has no earlier champion",
                hint="promote a version instead; see the registry's versions",
            )
        client.set_registered_model_alias(name, CHAMPION, str(former[-1]))
        _remember(client, name, former[:-1])
        logger.info("rolled back %s from version %s to %s", name, current, former[-1])
        return _version(client, name, former[-1])


def champion(run: RunConfig) -> ModelVersion | None:
    """The version to serve; None where nothing is registered."""
    database = database_of(run)
    if database is not None and not database.exists():
        return None
    name = run.registry.model_name
    with registry_client(run) as client:
        if not client.search_registered_models(f"name = '{name}'"):
            return None
        number = _aliases(client, name).get(CHAMPION)
        return None if number is None else _version(client, name, number)


def versions_made_of(run: RunConfig, models: Iterable[ArtifactRef]) -> list[ModelVersion]:
    """The registered versions that point to any of ``models``, oldest first."""
    database = database_of(run)
    if database is not None and not database.exists():
        return []
    digests, name = {one.digest for one in models}, run.registry.model_name
    with registry_client(run) as client:
        if not client.search_registered_models(f"name = '{name}'"):
            return []
        found = client.search_model_versions(f"name = '{name}'")
        numbers = sorted(int(one.version) for one in found if one.tags.get(_DIGEST) in digests)
        return [_version(client, name, number) for number in numbers]


def _ensure_model(client: MlflowClient, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Research software, not a medical device.")


def _find(client: MlflowClient, name: str, model: ArtifactRef) -> Entry | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{_DIGEST}` = '{model.digest}'")
    return found[0] if found else None


def _create(
    client: MlflowClient, run: RunConfig, model: ArtifactRef, evaluation: ArtifactRef, figures: Figures
) -> Entry:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.time import get_current_time_millis

    store, name = store_of(run), run.registry.model_name
    lineage = lineage_tags(store, model, evaluation)
    started = client.create_run(_experiment(client, run), run_name=f"{model.name}-{model.digest[:8]}")
    run_id = started.info.run_id
    now = get_current_time_millis()
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in figures.metrics.items()],
        params=[Param(key, value) for key, value in params(run).items()],
        tags=[RunTag(key, value) for key, value in lineage.items()],
    )
    client.set_terminated(run_id)
    identity = {_KIND: model.kind, _NAME: model.name, _DIGEST: model.digest, _TEST: figures.test_digest}
    scored = {} if figures.rouge_l is None else {_SCORE: repr(figures.rouge_l)}
    return client.create_model_version(
        name, source=store.uri(model.path), run_id=run_id, tags=lineage | identity | scored
    )


def _experiment(client: MlflowClient, run: RunConfig) -> str:
    """The experiment named as the model; its own files lie in the workspace where no server manages them."""
    name = run.registry.model_name
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    location = store_of(run).uri("mlflow") if database_of(run) else None
    return str(client.create_experiment(name, artifact_location=location))


def _decide(client: MlflowClient, entry: Entry, figures: Figures) -> None:
    name, number = entry.name, int(entry.version)
    current = _aliases(client, name).get(CHAMPION)
    wins, reason = _verdict(client, name, number, current, figures)
    if wins:
        _crown(client, name, number)
    else:
        client.set_registered_model_alias(name, CHALLENGER, str(number))
    client.set_model_version_tag(name, str(number), _DECISION, reason)
    logger.info("%s version %d: %s (%s)", name, number, CHAMPION if wins else CHALLENGER, reason)


def _verdict(
    client: MlflowClient, name: str, number: int, current: int | None, figures: Figures
) -> tuple[bool, str]:
    """Whether the version becomes champion, and why."""
    if current in {None, number}:
        return True, "the first champion"
    tags = client.get_model_version(name, str(current)).tags
    if tags.get(_TEST) != figures.test_digest:
        return (
            False,
            f"version {current} was evaluated on other examples or decoded otherwise; not comparable",
        )
    if figures.rouge_l is None or _SCORE not in tags:
        return False, f"no generated reports to compare with version {current}"
    score = float(tags[_SCORE])
    compared = f"average ROUGE-L {figures.rouge_l:.2f} against {score:.2f} of version {current}"
    return figures.rouge_l > score, compared


def _crown(client: MlflowClient, name: str, number: int) -> None:
    aliases = _aliases(client, name)
    current = aliases.get(CHAMPION)
    if current == number:
        return
    if current is not None:
        former = _former(client, name)
        # Written before the alias moves, so that an interruption in between never loses the way back.
        _remember(client, name, former if former[-1:] == [current] else [*former, current])
    client.set_registered_model_alias(name, CHAMPION, str(number))
    if aliases.get(CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)


def _former(client: MlflowClient, name: str) -> list[int]:
    text = client.get_registered_model(name).tags.get(_FORMER, "")
    return [int(number) for number in text.split(",") if number]


def _remember(client: MlflowClient, name: str, former: list[int]) -> None:
    client.set_registered_model_tag(name, _FORMER, ",".join(map(str, former)))


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    # Versions that a search returns carry no aliases; the registered model has them all.
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


def _version(client: MlflowClient, name: str, number: int) -> ModelVersion:
    tags = client.get_model_version(name, str(number)).tags
    held = [alias for alias, holder in sorted(_aliases(client, name).items()) if holder == number]
    artifact = ArtifactRef(tags[_KIND], tags[_NAME], tags[_DIGEST])
    return ModelVersion(name, number, artifact, CHAMPION if CHAMPION in held else next(iter(held), None))
