"""Versioned artifacts: ``<kind>/<name>-<digest8>/`` with content first and ``manifest.json`` last.

An artifact's digest is that of its plan (kind, name, resolved configuration, parents), so a step knows
before it computes anything whether its output already exists; the manifest adds the digest of every file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echoray.config import canonical_json, digest
from echoray.errors import ArtifactError
from echoray.storage import Store
from echoray.types import ArtifactRef

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact is made of and made from."""

    ref: ArtifactRef
    files: Mapping[str, str]  # relative path -> sha256 hex
    config: Mapping[str, Any]
    parents: tuple[ArtifactRef, ...]
    counts: Mapping[str, Any]


def plan(kind: str, name: str, *, config: Any, parents: Sequence[ArtifactRef] = ()) -> ArtifactRef:
    """Name the artifact that ``config`` and ``parents`` lead to, without computing it."""
    resolved = json.loads(canonical_json(config))
    key = [SCHEMA_VERSION, kind, name, resolved, [parent.digest for parent in parents]]
    return ArtifactRef(kind, name, digest(key))


def find(store: Store, ref: ArtifactRef) -> Manifest | None:
    """The manifest of a finished artifact, or None where it is missing or half-written.

    Raises ArtifactError when the manifest is damaged, of another version or of another artifact.
    """
    path = f"{ref.path}/{MANIFEST}"
    if not store.exists(path):
        return None
    try:
        raw = json.loads(store.read_bytes(path))
        version = raw["schema_version"]
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{store.uri(path)}: schema v{version}, expected v{SCHEMA_VERSION}",
                hint="delete the artifact and run the step again",
            )
        manifest = _from_json(raw)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{store.uri(path)}: damaged manifest ({type(error).__name__})",
            hint="delete the artifact's folder and run the step again",
        ) from None
    if manifest.ref != ref:
        raise ArtifactError(
            f"{store.uri(path)}: belongs to another artifact", hint="delete the folder and run again"
        )
    return manifest


def require(store: Store, ref: ArtifactRef, *, made_by: str) -> Manifest:
    """The manifest of an artifact that must be there; ``made_by`` is the command that makes it."""
    manifest = find(store, ref)
    if manifest is None:
        raise ArtifactError(
            f"{store.uri(ref.path)}: not there or not finished", hint=f"run `{made_by}` first"
        )
    return manifest


def seal(
    store: Store,
    ref: ArtifactRef,
    *,
    config: Any,
    parents: Sequence[ArtifactRef] = (),
    counts: Mapping[str, Any] | None = None,
    digests: Mapping[str, str] | None = None,
) -> Manifest:
    """Finish an artifact whose files are already in place: write the manifest, last.

    ``digests`` saves reading back files whose sha256 the writer already knows. Where another writer
    sealed the same artifact first, its manifest stands.
    """
    known = digests or {}
    names = [path.removeprefix(f"{ref.path}/") for path in store.list(ref.path)]
    files = {
        name: known.get(name) or sha256_of(store, f"{ref.path}/{name}") for name in names if name != MANIFEST
    }
    manifest = Manifest(ref, files, json.loads(canonical_json(config)), tuple(parents), dict(counts or {}))
    content = json.dumps(_to_json(manifest), indent=1, sort_keys=True).encode()
    if not store.write_bytes(f"{ref.path}/{MANIFEST}", content, if_absent=True):
        logger.info("artifact %s was finished by another process", ref.path)
        return find(store, ref) or manifest
    return manifest


def produce(
    store: Store,
    ref: ArtifactRef,
    build: Callable[[Path], Mapping[str, Any]],
    *,
    config: Any,
    parents: Sequence[ArtifactRef] = (),
) -> Manifest:
    """Return the artifact's manifest, building it only where it is missing.

    ``build`` fills a local folder and returns the counts; leftovers of an interrupted attempt are removed,
    the files are uploaded, then the manifest. What another process finished meanwhile is left as it is.
    """
    existing = find(store, ref)
    if existing is not None:
        return existing
    with tempfile.TemporaryDirectory(prefix="echoray-") as folder:
        counts = build(Path(folder))
        finished = find(store, ref)
        if finished is not None:
            return finished
        clear(store, ref)
        digests = upload_folder(store, Path(folder), ref.path)
    return seal(store, ref, config=config, parents=parents, counts=counts, digests=digests)


def clear(store: Store, ref: ArtifactRef) -> None:
    """Remove what an interrupted attempt left of an unfinished artifact; a finished one is never touched."""
    if find(store, ref) is None:
        store.delete(ref.path)


def fetch(store: Store, ref: ArtifactRef, cache: Path | None = None) -> Path:
    """The artifact as a local folder: in place for file://, else a verified download below ``cache``.

    Raises ArtifactError when it is not finished or a downloaded file does not match the manifest.
    """
    manifest = require(store, ref, made_by="echoray demo")
    local = store.local(ref.path)
    if local is not None:
        return local
    folder = (cache or Path.home() / ".cache" / "echoray") / ref.path
    for name, expected in manifest.files.items():
        target = folder / name
        if target.exists() and _sha256_file(target) == expected:
            continue
        store.download(f"{ref.path}/{name}", target)
        if _sha256_file(target) != expected:
            target.unlink()
            raise ArtifactError(
                f"{store.uri(ref.path)}/{name}: content differs from the manifest", hint="restore it"
            )
    return folder


def verify(store: Store, ref: ArtifactRef) -> None:
    """Read every file of an artifact and compare it with the manifest; ArtifactError on a difference."""
    for name, expected in require(store, ref, made_by="echoray demo").files.items():
        if sha256_of(store, f"{ref.path}/{name}") != expected:
            raise ArtifactError(
                f"{store.uri(ref.path)}/{name}: content differs from the manifest",
                hint="delete the artifact's folder and run the step again",
            )


def upload_folder(store: Store, folder: Path, path: str) -> dict[str, str]:
    """Upload every file below ``folder`` to ``path``; the result maps relative names to sha256."""
    digests = {}
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = file.relative_to(folder).as_posix()
        digests[name] = _sha256_file(file)
        store.upload(file, f"{path}/{name}".lstrip("/"))
    return digests


def sha256_of(store: Store, path: str) -> str:
    """SHA-256 (hex) of one object's content."""
    with store.open(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def _sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _to_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "ref": vars(manifest.ref),
        "files": dict(manifest.files),
        "config": dict(manifest.config),
        "parents": [vars(parent) for parent in manifest.parents],
        "counts": dict(manifest.counts),
    }


def _from_json(raw: Mapping[str, Any]) -> Manifest:
    parents = tuple(ArtifactRef(**parent) for parent in raw["parents"])
    return Manifest(ArtifactRef(**raw["ref"]), raw["files"], raw["config"], parents, raw["counts"])
