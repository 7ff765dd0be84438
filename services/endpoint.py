"""The reporting endpoint as RayService manifests name it: ``services.endpoint:build_app``."""

from __future__ import annotations

from echoray.serve.deployment import build_app

__all__ = ["build_app"]
