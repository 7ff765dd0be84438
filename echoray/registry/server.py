"""Reaching MLflow: SQLite in a file:// workspace, otherwise the configured server."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from echoray.config import RunConfig
from echoray.errors import ConfigError, RegistryError
from echoray.storage import store_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
# Read when mlflow is first imported. Nothing leaves the site; an unreachable server is reported in seconds.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_SERVER_HINT = "check registry.tracking_uri, that the server runs and that the account may write"
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_UNKNOWN_HINT = "register the model first, or name a version that exists"


def database_of(run: RunConfig) -> Path | None:
    """The SQLite file of the workspace; None where a server is configured.

    Raises ConfigError where there is neither, or a server that could not reach the workspace's models.
    """
    folder = store_of(run).local()
    if run.registry.tracking_uri:
        if folder is not None and run.registry.tracking_uri.startswith("http"):
            raise ConfigError(
                f"the MLflow server {without_userinfo(run.registry.tracking_uri)} refuses models in a local "
                f"folder ({folder})",
                hint="leave registry.tracking_uri out (SQLite in the workspace), or use an s3:// workspace",
            )
        return None
    if folder is None:
        raise ConfigError(
            f"registry.tracking_uri is not set, and SQLite does not work on {run.workspace}",
            hint="name an MLflow server: --set registry.tracking_uri=http://mlflow:5000",
        )
    return folder / DATABASE


@contextmanager
def registry_client(run: RunConfig) -> Iterator[MlflowClient]:
    """Yield a client of the run's MLflow; its errors become RegistryError."""
    database = database_of(run)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # Not by MLFLOW_LOGGING_LEVEL: other libraries import mlflow before anything here runs.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = _uri(database) if database else str(run.registry.tracking_uri)
    try:
        if database and not database.exists():
            _create(database)
        yield _client(uri)
    except MlflowException as error:
        unknown = error.error_code == "RESOURCE_DOES_NOT_EXIST"
        raise RegistryError(
            without_userinfo(f"MLflow at {uri}: {error.message}"),
            hint=_UNKNOWN_HINT if unknown else _SERVER_HINT,
        ) from None
    except SQLAlchemyError as error:
        raise RegistryError(
            without_userinfo(
                f"MLflow at {uri}: {type(error).__name__}: {error.__cause__ or 'see the database'}"
            ),
            hint="restore the database from a backup, or move it away to start an empty registry",
        ) from None


def without_userinfo(text: str) -> str:
    """``text`` without ``user:password@`` in any URI: messages end in logs, and MLflow's repeat the URI."""
    return _USERINFO.sub("", text)


def _create(database: Path) -> None:
    """Make an empty database beside its place and move it there.

    MLflow's migrations take seconds, and a database that they were interrupted in cannot be opened again.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=database.parent) as folder:
        partial = Path(folder) / DATABASE
        _client(_uri(partial)).search_registered_models()
        partial.replace(database)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _uri(database: Path) -> str:
    return f"sqlite:///{database}"
