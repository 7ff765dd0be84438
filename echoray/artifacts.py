"""Versioned artifacts: ``<kind>/<name>-<digest8>/`` with content first and ``manifest.json`` last.

An artifact's digest is that of its plan (kind, name, resolved configuration, parents), so a step knows
before it computes anything whether its output already exists; the manifest adds the digest of every file.

Object stores have no lock: two runs of one configuration may write, clear and seal the same artifact at the
same time. Whoever seals checks after the manifest is there that its files are still what it says, and whoever
deletes checks afterwards that nothing was sealed meanwhile, so that one of the two sees a collision.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from echoray.config import canonical_json, digest
from echoray.errors import ArtifactError, StorageError
from echoray.storage import Store
from echoray.types import ArtifactRef

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_AGAIN = "run the same command again, when no other run of the configuration is at work"


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

    Raises ArtifactError when the manifest is damaged, of another version, of another artifact, or names a
    file outside the artifact.
    """
    path = f"{ref.path}/{MANIFEST}"
    content = _read_if_there(store, path)
    if content is None:
        return None
    manifest = _parsed(store, path, content)
    if manifest.ref != ref:
        raise ArtifactError(
            f"{store.uri(path)}: belongs to another artifact", hint="delete the folder and run again"
        )
    _refuse_outside(store, ref, manifest.files)
    return manifest


def require(store: Store, ref: ArtifactRef, *, made_by: str) -> Manifest:
    """The manifest of an artifact that must be there; ``made_by`` is the command that makes it."""
    manifest = find(store, ref)
    if manifest is None:
        raise ArtifactError(
            f"{store.uri(ref.path)}: not there or not finished", hint=f"run `{made_by}` first"
        )
    return manifest


def finished(store: Store, kind: str) -> Iterator[Manifest]:
    """The manifests of every finished artifact of a kind, by path; ArtifactError where one is damaged."""
    for path in store.list(kind):
        folder, _, name = path.rpartition("/")
        if name == MANIFEST and folder.count("/") == 1:
            content = _read_if_there(store, path)
            if content is not None:
                yield _parsed(store, path, content)


def lineage(store: Store, ref: ArtifactRef) -> list[tuple[ArtifactRef, Mapping[str, Any]]]:
    """``ref`` and everything that it was made from, nearest first, each once, with its counts.

    What is not in the store any more is named without counts.
    """
    found: dict[ArtifactRef, Mapping[str, Any]] = {}
    todo = [ref]
    while todo:
        one = todo.pop(0)
        if one in found:
            continue
        manifest = find(store, one)
        found[one] = manifest.counts if manifest else {}
        todo += manifest.parents if manifest else ()
    return list(found.items())


def seal(
    store: Store,
    ref: ArtifactRef,
    *,
    config: Any,
    parents: Sequence[ArtifactRef] = (),
    counts: Mapping[str, Any] | None = None,
    digests: Mapping[str, str | None] | None = None,
) -> Manifest:
    """Finish an artifact whose files are already in place: write the manifest, last.

    ``digests`` names all files that the writer wrote, with their sha256 or None where it is to be read back;
    what else lies there is a leftover and is removed. None given: whatever is there is the artifact.
    Where another writer sealed the same artifact first, its manifest stands.
    Raises ArtifactError, and leaves nothing sealed, where another writer removed or changed files.
    """
    files = _settle(store, ref, digests)
    manifest = Manifest(ref, files, json.loads(canonical_json(config)), tuple(parents), dict(counts or {}))
    content = json.dumps(_to_json(manifest), indent=1, sort_keys=True).encode()
    path = f"{ref.path}/{MANIFEST}"
    if not store.write_bytes(path, content, if_absent=True):
        logger.info("artifact %s was finished by another process", ref.path)
        other = find(store, ref)
        if other is None:
            raise ArtifactError(f"{store.uri(path)}: was there and is gone again", hint=_AGAIN)
        manifest = other
    broken = _broken(store, ref, manifest, files)
    if broken:
        store.delete(path)
        _refuse_collision(store, ref, broken)
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

    ``build`` fills a local folder and returns the counts; the files are uploaded, leftovers of an interrupted
    attempt are removed, then comes the manifest. What another process finished meanwhile is left as it is.
    """
    existing = find(store, ref)
    if existing is not None:
        return existing
    with tempfile.TemporaryDirectory(prefix="echoray-") as folder:
        counts = build(Path(folder))
        finished = find(store, ref)
        if finished is not None:
            return finished
        digests = upload_folder(store, Path(folder), ref.path)
    return seal(store, ref, config=config, parents=parents, counts=counts, digests=digests)


def clear(store: Store, ref: ArtifactRef) -> None:
    """Remove what an interrupted attempt left of an unfinished artifact; a finished one is never touched."""
    if find(store, ref) is not None:
        return
    store.delete(ref.path)
    manifest = find(store, ref)
    if manifest is not None and not manifest.files.keys() <= _names(store, ref):
        # Sealed between the look and the deletion: what is left of it must not be taken for finished.
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


def write_file(store: Store, path: str, name: str, content: bytes) -> str:
    """Write ``content`` as the file ``name`` of the folder ``path``; its sha256 (hex)."""
    store.write_bytes(f"{path}/{name}", content)
    return hashlib.sha256(content).hexdigest()


def upload_folder(store: Store, folder: Path, path: str) -> dict[str, str]:
    """Upload every file below ``folder`` to ``path``; the result maps relative names to sha256."""
    digests = {}
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = file.relative_to(folder).as_posix()
        digests[name] = upload_file(store, file, f"{path}/{name}".lstrip("/"))
    return digests


def upload_file(store: Store, source: Path, path: str) -> str:
    """Upload one file to ``path``; its sha256 (hex)."""
    digest_hex = _sha256_file(source)
    store.upload(source, path)
    return digest_hex


def sha256_of(store: Store, path: str) -> str:
    """SHA-256 (hex) of one object's content."""
    with store.open(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def _parsed(store: Store, path: str, content: bytes) -> Manifest:
    try:
        raw = json.loads(content)
        version = raw["schema_version"]
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{store.uri(path)}: schema v{version}, expected v{SCHEMA_VERSION}",
                hint="delete the artifact and run the step again",
            )
        return _from_json(raw)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{store.uri(path)}: damaged manifest ({type(error).__name__})",
            hint="delete the artifact's folder and run the step again",
        ) from None


def _read_if_there(store: Store, path: str) -> bytes | None:
    if not store.exists(path):
        return None
    try:
        return store.read_bytes(path)
    except StorageError:
        # Another writer may have withdrawn it in between.
        if store.exists(path):
            raise
        return None


def _settle(store: Store, ref: ArtifactRef, digests: Mapping[str, str | None] | None) -> dict[str, str]:
    """The sha256 of every file to be sealed; leftovers are removed, and a file that is gone is refused."""
    present = _names(store, ref)
    names = set(digests) if digests is not None else present - {MANIFEST}
    _refuse_collision(store, ref, sorted(names - present))
    if MANIFEST not in present:
        for name in present - names:
            store.delete(f"{ref.path}/{name}")
    known = digests or {}
    return {name: known.get(name) or sha256_of(store, f"{ref.path}/{name}") for name in sorted(names)}


def _broken(store: Store, ref: ArtifactRef, manifest: Manifest, own: Mapping[str, str]) -> list[str]:
    """The files of a sealed artifact that are gone or changed; read back where ``own`` digests differ."""
    present = _names(store, ref)
    return [
        name
        for name, expected in manifest.files.items()
        if name not in present
        or (own.get(name) != expected and sha256_of(store, f"{ref.path}/{name}") != expected)
    ]


def _refuse_collision(store: Store, ref: ArtifactRef, names: Sequence[str]) -> None:
    if names:
        raise ArtifactError(
            f"{store.uri(ref.path)}: {len(names)} files are gone or changed, first {names[0]}; another run "
            "of the same configuration wrote there at the same time",
            hint=_AGAIN,
        )


def _refuse_outside(store: Store, ref: ArtifactRef, names: Iterable[str]) -> None:
    for name in names:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ArtifactError(
                f"{store.uri(ref.path)}: the manifest names a file outside the artifact: {name!r}",
                hint="do not use this store before you know who wrote it; delete the artifact's folder",
            )


def _names(store: Store, ref: ArtifactRef) -> set[str]:
    return {path.removeprefix(f"{ref.path}/") for path in store.list(ref.path)}


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
    return Manifest(ArtifactRef(**raw["ref"]), dict(raw["files"]), raw["config"], parents, raw["counts"])
