"""The registry on a real MLflow SQLite database: versions, champion, promotion, rollback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from echoray import artifacts
from echoray.config import RunConfig, load_run
from echoray.errors import ConfigError, RegistryError
from echoray.registry import champion, promote, register, rollback
from echoray.registry import versions as versions_module
from echoray.registry.server import DATABASE, registry_client, without_userinfo
from echoray.storage import store_of
from echoray.types import ArtifactRef


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's migrations take seconds: once per module."""
    folder = tmp_path_factory.mktemp("mlflow")
    with registry_client(load_run("tiny").merged({"workspace": str(folder)})) as client:
        client.search_registered_models()
    return folder / DATABASE


@pytest.fixture
def run(tmp_path: Path, empty_database: Path) -> RunConfig:
    shutil.copyfile(empty_database, tmp_path / DATABASE)
    return load_run("tiny").merged({"workspace": str(tmp_path)})


def make(run: RunConfig, kind: str, name: str, files: dict[str, str], *parents: ArtifactRef) -> ArtifactRef:
    ref = artifacts.plan(kind, name, config=files, parents=parents)

    def build(folder: Path) -> dict[str, int]:
        for path, text in files.items():
            (folder / path).write_text(text)
        return {}

    artifacts.produce(store_of(run), ref, build, config=files, parents=parents)
    return ref


def make_model(run: RunConfig, name: str) -> ArtifactRef:
    shards = make(run, "shards", "s", {"part": "rows"})
    checkpoint = make(run, "checkpoint", name, {"weights": name}, shards)
    return make(run, "model", name, {"model.safetensors": name}, checkpoint)


def make_evaluation(
    run: RunConfig, model: ArtifactRef, rouge_l: float, test_digest: str = "t" * 64
) -> ArtifactRef:
    row = {"task": "report", "system": "average", "metric": "rouge_l", "mean": rouge_l, "model": "stage 2"}
    report = {
        "models": {"stage 2": model.digest},
        "rows": [row],
        "system_accuracy": {"stage 2": 0.95},
        "test_digest": test_digest,
    }
    return make(run, "evaluation", model.name, {"report.json": json.dumps(report)}, model)


def add(run: RunConfig, name: str, rouge_l: float, test_digest: str = "t" * 64) -> tuple[int, str | None]:
    model = make_model(run, name)
    version = register(run, model, make_evaluation(run, model, rouge_l, test_digest))
    assert version.artifact == model
    return version.version, version.alias


def current(run: RunConfig) -> int | None:
    version = champion(run)
    return None if version is None else version.version


def test_the_first_version_is_champion_and_only_a_better_one_takes_its_place(run: RunConfig) -> None:
    assert champion(run) is None
    assert add(run, "first", 50.0) == (1, "champion")
    assert add(run, "worse", 49.9) == (2, "challenger")
    assert add(run, "equal", 50.0) == (3, "challenger")
    assert add(run, "better", 50.1) == (4, "champion")
    assert current(run) == 4


def test_a_version_evaluated_on_another_test_split_never_wins_by_its_figures(run: RunConfig) -> None:
    add(run, "first", 10.0)
    assert add(run, "other", 99.0, test_digest="u" * 64) == (2, "challenger")


def test_registering_the_same_artifact_again_gives_the_same_version(run: RunConfig) -> None:
    assert add(run, "first", 50.0) == add(run, "first", 50.0) == (1, "champion")
    with registry_client(run) as client:
        assert len(client.search_model_versions("name = 'echovlm'")) == 1
        assert len(client.search_runs([client.get_experiment_by_name("echovlm").experiment_id])) == 1


def test_a_registration_interrupted_before_the_decision_is_finished_by_the_next(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(versions_module, "_decide", interrupt)
        add(run, "first", 50.0)
    assert current(run) is None
    assert add(run, "first", 50.0) == (1, "champion")


def test_a_version_points_to_the_artifact_and_names_figures_parameters_and_lineage(run: RunConfig) -> None:
    model = make_model(run, "first")
    register(run, model, make_evaluation(run, model, 55.5))
    with registry_client(run) as client:
        version = client.get_model_version("echovlm", "1")
        logged = client.get_run(version.run_id).data
    assert version.source == store_of(run).uri(model.path)
    kinds = [one["path"].split("/")[0] for one in json.loads(version.tags["echoray.lineage"])]
    assert kinds == ["model", "checkpoint", "shards"]
    assert logged.metrics == {"report/average/rouge_l": 55.5, "report/system_accuracy": 0.95}
    assert logged.params["train.align.learning_rate"] == str(run.train.align.learning_rate)
    assert not [key for key in logged.params if "source" in key or "key_ref" in key or "workspace" in key]


def test_weights_are_not_copied_into_the_registry(run: RunConfig) -> None:
    add(run, "first", 50.0)
    workspace = store_of(run).local()
    assert workspace is not None
    assert [path.parent.name[:5] for path in workspace.rglob("model.safetensors")] == ["first"]


def test_rollback_walks_back_through_the_champions_and_stops_at_the_first(run: RunConfig) -> None:
    for name, rouge_l in (("one", 1.0), ("two", 2.0), ("three", 3.0)):
        add(run, name, rouge_l)
    assert promote(run, 1).alias == "champion"
    assert [rollback(run).version for _ in range(3)] == [3, 2, 1]
    with pytest.raises(RegistryError, match="no earlier champion"):
        rollback(run)
    assert current(run) == 1


def test_promoting_a_challenger_moves_the_alias_and_promoting_twice_changes_nothing(run: RunConfig) -> None:
    add(run, "one", 2.0)
    assert add(run, "two", 1.0) == (2, "challenger")
    assert promote(run, 2) == promote(run, 2) == champion(run)
    with registry_client(run) as client:
        assert client.get_registered_model("echovlm").aliases == {"champion": 2}
    assert rollback(run).version == 1


def test_a_version_that_does_not_exist_cannot_be_promoted(run: RunConfig) -> None:
    add(run, "one", 1.0)
    with pytest.raises(RegistryError, match="version=9") as error:
        promote(run, 9)
    assert "name a version that exists" in error.value.hint
    assert current(run) == 1


def test_a_model_that_was_not_evaluated_is_refused(run: RunConfig) -> None:
    evaluated, other = make_model(run, "one"), make_model(run, "two")
    with pytest.raises(RegistryError, match="no figures of model/two"):
        register(run, other, make_evaluation(run, evaluated, 1.0))


def test_object_storage_needs_a_tracking_server() -> None:
    run = load_run("tiny").merged({"workspace": "s3://bucket/prefix"})
    with pytest.raises(ConfigError, match=r"registry\.tracking_uri is not set"):
        champion(run)


def test_asking_a_fresh_workspace_for_its_champion_creates_nothing(tmp_path: Path) -> None:
    assert champion(load_run("tiny").merged({"workspace": str(tmp_path)})) is None
    assert list(tmp_path.iterdir()) == []


def test_a_server_does_not_take_models_of_a_local_workspace(tmp_path: Path) -> None:
    settings = {"workspace": str(tmp_path), "registry": {"tracking_uri": "http://127.0.0.1:9"}}
    with pytest.raises(ConfigError, match="refuses models in a local folder"):
        champion(load_run("tiny").merged(settings))


def test_an_unreachable_server_is_named_within_seconds() -> None:
    settings = {"workspace": "s3://bucket/x", "registry": {"tracking_uri": "http://127.0.0.1:9"}}
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9"):
        champion(load_run("tiny").merged(settings))


CREDENTIALS = "ann:s3cr3t%2F@"


@pytest.mark.parametrize(
    ("workspace", "uri", "error"),
    [
        ("s3://bucket/x", "http://{}127.0.0.1:9", RegistryError),
        ("s3://bucket/x", "nosuch+db://{}127.0.0.1:9/mlflow", RegistryError),
        ("local", "http://{}127.0.0.1:9", ConfigError),
    ],
)
def test_credentials_in_the_tracking_uri_are_in_no_message(
    workspace: str, uri: str, error: type[Exception], tmp_path: Path
) -> None:
    workspace = str(tmp_path) if workspace == "local" else workspace
    settings = {"workspace": workspace, "registry": {"tracking_uri": uri.format(CREDENTIALS)}}
    with pytest.raises(error) as raised:
        champion(load_run("tiny").merged(settings))
    assert "ann" not in str(raised.value) and "s3cr3t" not in str(raised.value)
    assert uri.format("") in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://ann:p@ss@db:5432/x failed", "at postgresql://db:5432/x failed"),
        ("http://ann@host and https://b:c@other/p", "http://host and https://other/p"),
        ("write to ops@site.org about http://host/a@b", "write to ops@site.org about http://host/a@b"),
        ("sqlite:////work/a@b/mlflow.db", "sqlite:////work/a@b/mlflow.db"),
    ],
)
def test_only_userinfo_is_taken_out_of_a_uri(text: str, shown: str) -> None:
    assert without_userinfo(text) == shown


def test_a_damaged_database_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("not a database")
    with pytest.raises(RegistryError, match="file is not a database") as error:
        champion(load_run("tiny").merged({"workspace": str(tmp_path)}))
    assert "backup" in error.value.hint


def test_a_kill_while_the_database_is_made_leaves_a_workspace_that_works(tmp_path: Path) -> None:
    code = (
        "from echoray.config import load_run; from echoray.registry import rollback;"
        f"rollback(load_run('tiny').merged({{'workspace': {str(tmp_path)!r}}}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 50_000 for path in tmp_path.rglob(DATABASE)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / DATABASE).exists()
    assert add(load_run("tiny").merged({"workspace": str(tmp_path)}), "first", 1.0) == (1, "champion")
