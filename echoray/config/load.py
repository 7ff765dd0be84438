"""Build the one RunConfig of a command: preset or YAML file, then ``--set a.b=c`` on top."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from echoray.config.base import digest
from echoray.config.presets import PRESETS
from echoray.config.run import RunConfig, deep_merge
from echoray.errors import ConfigError

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
LIST_KEYS = "echoray config show --config tiny"


def load_run(config: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a preset name or a YAML file and ``overrides`` ("a.b=value") to a validated RunConfig.

    A YAML file may name a ``preset:`` to start from.
    Raises ConfigError on an unknown preset, file, key (the nearest match is suggested) or value.
    """
    values = _read(config)
    for item in overrides:
        values = deep_merge(values, _override(item))
    _refuse_unknown(values)
    try:
        # Laid over the defaults, so that naming one key of a section keeps the section's other defaults.
        return RunConfig().merged(values)
    except ValidationError as error:
        raise ConfigError(
            _explain(error), hint=f"`{LIST_KEYS}` prints every key with a valid value"
        ) from None


def run_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of the resolved configuration, the same for the same values."""
    return digest(config)


def secret(reference: str) -> str:
    """Read a secret named by ``env:NAME`` or ``file:PATH``; the value is never logged.

    Raises ConfigError when the variable or the file is missing or empty, or the file is no text.
    """
    kind, _, where = reference.partition(":")
    if kind == "env":
        value = os.environ.get(where, "")
    else:
        try:
            value = Path(where).read_text()
        except OSError as error:
            raise ConfigError(
                f"{reference}: {error.strerror}", hint="create the file or name another one"
            ) from None
        except ValueError:  # its message would hold bytes of the secret
            raise ConfigError(
                f"{reference}: not a text file", hint="write the secret as text, or name another file"
            ) from None
    if not value.strip():
        act = f"set {where} before the command" if kind == "env" else f"write the secret into {where}"
        raise ConfigError(f"{reference}: the secret is empty or not set", hint=act)
    return value.strip()


def _read(config: str) -> dict[str, Any]:
    if config in PRESETS:
        return dict(PRESETS[config])
    path = Path(config)
    if path.suffix not in {".yaml", ".yml"}:
        near = difflib.get_close_matches(config, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PRESETS)} or a .yaml file"
        raise ConfigError(f"no preset named {config!r}", hint=hint)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(
            f"{config}: {error.strerror}", hint="check the path of the configuration file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config}: not valid YAML: {error}", hint="correct the file's syntax") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{config}: expected a mapping of sections", hint=f"see `{LIST_KEYS}`")
    preset = values.pop("preset", None)
    if preset is None:
        return values
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(
            f"{config}: preset {preset!r} is not known", hint=f"choose one of {', '.join(PRESETS)}"
        )
    return deep_merge(PRESETS[preset], values)


def _override(item: str) -> dict[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key:
        # Only what looks like a key is repeated: the rest may be a secret.
        key = re.sub(r"[^\w.].*", "...", key, flags=re.S)
        raise ConfigError(f"--set {key!r}: expected KEY=VALUE", hint="for example --set train.num_workers=2")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    # YAML 1.1 reads 3e-3 as text; a number is what the user means.
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _refuse_unknown(values: dict[str, Any]) -> None:
    known = set(keys(RunConfig))
    for key in _flatten(values):
        if key in known or any(other.startswith(f"{key}.") for other in known):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"`{LIST_KEYS}` prints every key"
        raise ConfigError(f"unknown configuration key {key!r}", hint=hint)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of ``section``, leaves and inner sections."""
    for name, info in section.model_fields.items():
        inner = _section_of(info.annotation)
        yield f"{prefix}{name}"
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    found = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
    return found[0] if found else None


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _explain(error: ValidationError) -> str:
    lines = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"]) or "configuration"
        # Somebody who writes a secret where a reference to it belongs must not find it in a log.
        hidden = (
            where.endswith("_ref") or isinstance(one["input"], dict | BaseModel) or "@" in str(one["input"])
        )
        given = "" if hidden else f" (given: {one['input']!r})"
        lines.append(f"{where}: {one['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(lines)
