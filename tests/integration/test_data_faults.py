"""The data steps on a store that fails: the same bytes as on a good one, or a clear end and a way on."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from echoray.errors import StorageError
from echoray.platform.failures import known_cause
from echoray.storage import store_of
from tests.integration.conftest import S3Server, free_port, wait_for
from tests.integration.faulty_s3 import KINDS
from tests.integration.pipeline_case import DRIVER, Made, assert_same_bytes, make
from tests.small_disk import resize, small_disk

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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "200k", in_use=True):
        yield tmp_path


def test_a_disk_that_fills_up_in_each_step_ends_clearly_and_more_room_gives_the_same_bytes(
    made: Made, disk: Path
) -> None:
    run = made.run.merged({"workspace": str(disk)})
    pages = [sum(-(-size // 4096) for size in made.store.sizes(ref.path).values()) for ref in made.refs]
    room, finished = 20, list[int]()  # pages for folders and records
    for needed in (*pages, sum(pages)):
        limit = room + needed // 2
        resize(disk, f"{4 * limit}k")
        try:
            again = make(run)
        except Exception as error:
            cause = known_cause(error)
            assert isinstance(cause, StorageError) and "no space left" in cause.message, error
        store = store_of(run)
        finished.append(sum(store.exists(f"{ref.path}/manifest.json") for ref in made.refs))
        room += needed
    assert finished == [0, 1, 2, 3]
    assert again.refs == made.refs
    assert_same_bytes(made, store_of(run))


def test_a_store_that_fails_every_seventh_time_gets_the_same_bytes(
    made: Made,
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
