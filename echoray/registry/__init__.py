"""The model registry (MLflow): versions with lineage and figures, a champion, promotion and rollback."""

from echoray.registry.versions import champion, promote, register, rollback

__all__ = ["champion", "promote", "register", "rollback"]
