"""The data steps on a store that fails: the same bytes as on a good one, or a clear end and a way on."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from echoray.storage import store_of
from tests.integration.conftest import S3Server, free_port, wait_for
from tests.integration.faulty_s3 import KINDS
from tests.integration.test_data_pipeline import DRIVER, Made, assert_same_bytes, made  # noqa: F401

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

RATE = 0.15


@pytest.fixture
def faulty_s3(s3_server: S3Server) -> Iterator[str]:
    port = free_port()
    module = "tests.integration.faulty_s3"
    server = subprocess.Popen([sys.executable, "-m", module, s3_server.endpoint_url, str(port), str(RATE)])
    try:
        wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_a_store_that_fails_every_seventh_time_gets_the_same_bytes(
    made: Made,  # noqa: F811
    s3_server: S3Server,
    faulty_s3: str,
) -> None:
    storage = {"endpoint_url": faulty_s3, "region": "us-east-1"}
    run = made.run.merged({"workspace": f"s3://{s3_server.bucket}/faulty", "storage": storage})
    command = [sys.executable, "-c", DRIVER, run.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    good = run.merged({"storage": {"endpoint_url": s3_server.endpoint_url}})
    assert_same_bytes(made, store_of(good))
    with urllib.request.urlopen(f"{faulty_s3}/__faults") as answer:
        faults = json.load(answer)
    assert set(faults) == set(KINDS) and sum(faults.values()) > 30, faults
