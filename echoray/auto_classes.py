"""``import echoray`` is enough for transformers' Auto classes to know EchoVLM, and costs no import of torch.

transformers looks a configuration class up by model type in the module ``transformers.models.<type>``, and
only when a checkpoint asks for it. Our types are put into that table when transformers builds it, and modules
of those names are served from ``echoray.model``, whose import registers everything else.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_TYPES = {"echovlm": "EchoVLMConfig", "echovlm_text": "EchoVLMTextConfig"}
_TABLE = "transformers.models.auto.configuration_auto"
_MODULES = frozenset(f"transformers.models.{name}" for name in MODEL_TYPES)


def announce() -> None:
    """Let transformers find EchoVLM, whether it is imported already or later. Safe to call again."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    table = sys.modules.get(_TABLE)
    if table is not None and hasattr(table, "CONFIG_MAPPING"):
        _extend(table)


def _extend(table: Any) -> None:
    for model_type, name in MODEL_TYPES.items():
        table.CONFIG_MAPPING_NAMES.setdefault(model_type, name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _MODULES:
            return ModuleSpec(fullname, _Served())
        if fullname != _TABLE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Extending(spec.loader)
                return spec
        return None


class _Served(Loader):
    """A module with EchoVLM's names; they are imported when one of them is asked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _from_model


def _from_model(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("echoray.model"), name)


class _Extending(Loader):
    """Executes the module as its own loader does, and adds EchoVLM to its table."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _extend(module)
