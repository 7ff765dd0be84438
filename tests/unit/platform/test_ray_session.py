"""Which Ray a command takes, what it puts into the environment, and whose signal handler holds."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest
import ray

from echoray.config import ClusterConfig
from echoray.errors import EchoRayError
from echoray.platform.runtime import _DRIVER_ENV, _LOCAL_ENV, ray_session


class FakeRay:
    """Stands for ray.init and ray.shutdown; leaves a SIGTERM handler behind as ray.init does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: BaseException | None = None) -> None:
        self.arguments: dict[str, Any] = {}
        self.shut_down = 0
        self._failure = failure
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", self.shutdown)
        for name in (*_DRIVER_ENV, *_LOCAL_ENV, "RAY_ADDRESS"):
            monkeypatch.setenv(name, "")  # so that it is put back
            monkeypatch.delenv(name)

    def init(self, **arguments: Any) -> None:
        self.arguments = arguments
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(15))
        if self._failure is not None:
            raise self._failure

    def shutdown(self) -> None:
        self.shut_down += 1


def test_without_an_address_a_new_local_instance_starts_whatever_ray_address_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRay(monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    before = signal.getsignal(signal.SIGTERM)
    with ray_session(ClusterConfig()):
        assert fake.arguments["address"] == "local"
        assert fake.arguments["num_cpus"] >= 6
        assert signal.getsignal(signal.SIGTERM) is before
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert fake.shut_down == 0
    assert fake.shut_down == 1


def test_a_cluster_is_asked_for_nothing_and_its_workers_environment_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRay(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        for given in (address, "auto", "ray://127.0.0.1:10001"):
            with ray_session(ClusterConfig(ray_address=given)):
                assert fake.arguments["address"] == given
                assert not fake.arguments.keys() & {"num_cpus", "object_store_memory", "include_dashboard"}
    assert not _LOCAL_ENV.keys() & os.environ.keys()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_where_nothing_listens_ray_is_not_asked_because_it_would_wait_for_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRay(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    for given in (address, "auto"):
        with (
            pytest.raises(EchoRayError, match=f"no Ray cluster answers at {address}: Connection refused"),
            ray_session(ClusterConfig(ray_address=given)),
        ):
            pass
    assert not fake.arguments


@pytest.mark.parametrize(
    ("address", "message"),
    [(None, "no local Ray instance could be started: too little"), ("nonsense", "answers at nonsense: too")],
)
def test_a_failing_start_says_what_was_tried(
    address: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeRay(monkeypatch, ValueError("too little"))
    with pytest.raises(EchoRayError, match=message), ray_session(ClusterConfig(ray_address=address)):
        pass


def test_sigterm_while_ray_starts_is_an_interruption_and_what_has_started_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRay(monkeypatch, SystemExit(15))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ray_session(ClusterConfig()):
        pass
    assert fake.shut_down == 1
    assert signal.getsignal(signal.SIGTERM) is before
