"""The error tree: every error a user can cause names the value, the expectation and the next act.

``EchoRayError`` carries a ``hint`` (what to do next) and an ``exit_code``: 2 where the user can put
it right by changing the input, 1 where something outside of the command failed.
No message may contain patient data; name files by their study hash or their position instead.
"""

from __future__ import annotations


class EchoRayError(Exception):
    """Base of all errors that EchoRay raises on purpose; ``hint`` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders in Ray tasks; the keyword-only hint must survive the trip.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(cls: type[EchoRayError], message: str, hint: str) -> EchoRayError:
    return cls(message, hint=hint)


class UsageError(EchoRayError):
    """The caller's input is wrong and can be corrected (CLI exit code 2, HTTP 4xx)."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is not valid."""


class InputDataError(UsageError):
    """A data source is missing, empty or not readable as a whole (single bad records are quarantined)."""


class ModelLoadError(UsageError):
    """A model directory or checkpoint does not have the expected keys, shapes or files."""


class ExportError(EchoRayError):
    """A trained model cannot be merged into one that gives the same answers."""


class StorageError(EchoRayError):
    """Object storage failed: no space, no permission, no connection, lost race."""


class ArtifactError(EchoRayError):
    """An artifact is missing, incomplete or does not match its manifest."""


class ShardError(ArtifactError):
    """A tokenized shard has another schema than this version reads."""


class BusyError(UsageError):
    """Another process holds the workspace."""


class TrainingError(EchoRayError):
    """Training cannot go on (non-finite loss, lost workers beyond the limit, nothing trainable)."""


class EvaluationError(EchoRayError):
    """An evaluation could not be computed from what it was given."""


class RegistryError(EchoRayError):
    """The model registry refused or could not be reached."""


class ServingError(EchoRayError):
    """The endpoint could not start, become ready or answer."""
