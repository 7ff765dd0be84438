"""The model registry (MLflow): versions with lineage and figures, a champion, promotion and rollback."""

from echoray.registry.versions import champion, promote, register, rollback, versions_made_of

__all__ = ["champion", "promote", "register", "rollback", "versions_made_of"]
