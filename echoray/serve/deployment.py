"""The endpoint as a Ray Serve application: one hop from the proxy to the replica that decodes."""

from __future__ import annotations

import logging
from typing import Any

from ray import serve
from ray.serve import Application

from echoray.serve.auth import read_hashes
from echoray.serve.settings import EndpointSettings

# Serve's own limit is a backstop: what stays below it reaches the replica and gets a JSON answer (429, 401).
_BACKSTOP_REQUESTS = 64
_MAX_START_ATTEMPTS = 2


def build_app(config: dict[str, Any]) -> Application:
    """The application of ``config``, a mapping of EndpointSettings.

    Raises ConfigError when no API key hash is found behind ``serve.api_keys_ref``.
    """
    settings = EndpointSettings.model_validate(config)
    limits = settings.serve
    deployment = serve.deployment(
        serve.ingress()(Endpoint),
        name="endpoint",
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        max_ongoing_requests=limits.max_ongoing_requests + _BACKSTOP_REQUESTS,
        max_queued_requests=_BACKSTOP_REQUESTS,
        max_constructor_retry_count=_MAX_START_ATTEMPTS,
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=limits.request_timeout_s,
        logging_config={"encoding": "JSON", "enable_access_log": False},
        **_replicas(settings),
    )
    return deployment.bind(settings.model_dump(mode="json"), read_hashes(limits.api_keys_ref))


def _replicas(settings: EndpointSettings) -> dict[str, Any]:
    limits = settings.serve
    if limits.max_replicas <= limits.num_replicas:
        return {"num_replicas": limits.num_replicas}
    # Queued work is what more replicas can help with; how busy a GPU looks says little about that.
    return {
        "autoscaling_config": {
            "min_replicas": limits.num_replicas,
            "max_replicas": limits.max_replicas,
            "target_ongoing_requests": max(1, limits.max_ongoing_requests // 2),
        }
    }


class Endpoint:
    """One replica: an engine, its limits and the ASGI application in front of them."""

    # Serve awaits the constructor, so that the replica takes no request before the model is loaded.
    async def __init__(  # type: ignore[misc]
        self, settings: dict[str, Any], key_hashes: tuple[str, ...]
    ) -> None:
        from echoray.serve.start import start_service

        self._service = await start_service(EndpointSettings.model_validate(settings), key_hashes)

    def __serve_build_asgi_app__(self) -> Any:
        """Serve asks for the ASGI application once the constructor is done."""
        from echoray.serve.http import create_http_app

        # A child of Serve's logger, so that the lines land in the replica's log file.
        return create_http_app(self._service, logging.getLogger("ray.serve.requests"))

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self._service.engine.check_health()

    async def __del__(self) -> None:
        service = getattr(self, "_service", None)
        if service is not None:
            service.draining = True
            await service.engine.stop()
