"""One local Ray instance and one S3 server for all integration tests of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and a bucket that exists."""

    endpoint_url: str
    bucket: str


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A moto server on a free port; credentials are in the environment, so that workers have them too."""
    import boto3
    from moto.server import ThreadedMotoServer

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict(zip(names, ("test", "test", "us-east-1"), strict=True)))
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3Server(f"http://{host}:{port}", "echoray-tests")
    boto3.client("s3", endpoint_url=found.endpoint_url).create_bucket(Bucket=found.bucket)
    yield found
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray as the command line starts it: quiet, no dashboard."""
    from echoray.config import load_run
    from echoray.platform.runtime import ray_session

    with ray_session(load_run("tiny").cluster):
        yield
