"""One local Ray instance and one S3 server for all integration tests of a session."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from echoray.config import S3Access
from tests.integration.pipeline_case import CHANGES, Made, make


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and a bucket that exists."""

    endpoint_url: str
    bucket: str

    @property
    def access(self) -> S3Access:
        """How a store reaches it."""
        return S3Access(endpoint_url=self.endpoint_url, region="us-east-1")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A moto server on a free port; credentials are in the environment, so that workers have them too.

    It is a process of its own: vLLM looks at every module of its process and falls over Flask's proxies.
    """
    import boto3

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict(zip(names, ("test", "test", "us-east-1"), strict=True)))
    try:
        with moto_server() as port:
            found = S3Server(f"http://127.0.0.1:{port}", "echoray-tests")
            boto3.client("s3", endpoint_url=found.endpoint_url).create_bucket(Bucket=found.bucket)
            yield found
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def moto_server(*options: str, **environment: str) -> Iterator[int]:
    """A moto server in a process of its own; the port that it listens at."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), *options]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
    try:
        wait_for(port, server)
        yield port
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Return when ``server`` listens at ``port``."""
    while server.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server ended with {server.returncode}")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray as the command line starts it: quiet, no dashboard."""
    from echoray.config import load_run
    from echoray.platform.runtime import ray_session

    with ray_session(load_run("tiny").cluster):
        yield


@pytest.fixture(scope="module")
def made(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The data steps with one worker in a fresh folder; a module's tests may add artifacts to it."""
    from echoray.config import load_run

    workspace = str(tmp_path_factory.mktemp("one-worker"))
    return make(load_run("tiny").merged({**CHANGES, "workspace": workspace}))
