"""Bringing the endpoint up for a block: what others serve on the same Ray is never taken down."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from endpoint_client import CLUSTER
from random_models import export, random_model

from echoray import artifacts
from echoray.cli.serving import served
from echoray.config import ServeConfig
from echoray.errors import ConfigError, ServingError
from echoray.serve.deploy import shutdown
from echoray.types import ModelVersion

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random EchoVLM."""
    return export(random_model("scalar"), tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture
def others_address(ray_local: None) -> Iterator[str]:
    """Somebody else's Serve application on the same Ray."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Greeting:
        async def __call__(self, request: Any) -> str:
            return "still here"

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Greeting.bind(), name="others", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    shutdown()


def steps(model_dir: Path, **changes: Any) -> Any:
    config = ServeConfig.model_validate({"engine": "transformers", "max_replicas": 1, **changes})
    version = ModelVersion("echovlm", 1, artifacts.plan("model", "x", config={}))
    return SimpleNamespace(
        run=SimpleNamespace(serve=config, cluster=CLUSTER), version=version, model_folder=lambda: model_dir
    )


def test_a_refused_endpoint_leaves_somebody_elses_alone(
    others_address: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ECHORAY_API_KEY_HASHES", raising=False)
    with pytest.raises(ServingError, match="serves already"), served(steps(model_dir), for_demo=True):
        pass
    with pytest.raises(ConfigError, match="ECHORAY_API_KEY_HASHES"), served(steps(model_dir), for_demo=False):
        pass
    assert httpx.get(others_address, timeout=30).text == "still here"


def test_the_demo_takes_a_free_port_where_its_own_is_busy_and_frees_all_of_it(
    ray_local: None, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with served(steps(model_dir, port=port), for_demo=True) as endpoint:
            assert not endpoint.url.endswith(f":{port}")
            assert httpx.get(f"{endpoint.url}/readyz", timeout=30).status_code == 200
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().out
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{endpoint.url}/readyz")


def test_an_endpoint_that_does_not_start_is_taken_down_by_deploy(
    ray_local: None, model_dir: Path, tmp_path: Path
) -> None:
    from echoray.serve.deploy import _controller

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_dir.iterdir():
        content = b"no weights" if file.suffix == ".safetensors" else file.read_bytes()
        (broken / file.name).write_bytes(content)
    with pytest.raises(ServingError, match="did not start"), served(steps(broken), for_demo=True):
        pass
    assert _controller() is None
