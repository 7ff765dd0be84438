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

from echoray.config import RunConfig
from echoray.errors import EchoRayError
from echoray.platform.workspace import MIN_FREE_BYTES
from echoray.storage import store_of

Status = Literal["ok", "warning", "error"]

# Bounds are those of pyproject.toml; doctor repeats only the packages whose mix of versions breaks silently.
_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "ray",
    "deepspeed",
    "peft",
    "mlflow",
    "pydicom",
    "rapidocr",
)
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
    for name in _PACKAGES:
        try:
            yield Check(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "error", "not installed", "run `make setup`")


def _serving_engine(run: RunConfig) -> Check:
    installed = importlib.util.find_spec("vllm") is not None
    if installed or run.serve.engine == "transformers":
        return Check("serving engine", "ok", "vllm" if installed else "transformers (embedded)")
    return Check(
        "serving engine",
        "error",
        "serve.engine is vllm, which is not installed",
        "`pip install 'echoray[vllm]'` on a GPU machine, or --set serve.engine=transformers",
    )


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
        return Check("workspace", "error", error.message, error.hint)
    return Check("workspace", "ok", f"{store.root} can be written and read")


def _base(run: RunConfig) -> Check:
    from echoray.model.base import resolve_base

    try:
        resolve_base(run.model.base)
    except EchoRayError as error:
        return Check("base model", "error", error.message, error.hint)
    return Check("base model", "ok", run.model.base)


def _accelerator(run: RunConfig) -> Check:
    import torch

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
