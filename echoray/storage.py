"""One storage layer over file://, s3:// and memory:// (fsspec): open, list, atomic write, conditional put."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from echoray.config import S3Access, secret
from echoray.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from echoray.config import RunConfig

logger = logging.getLogger(__name__)

SCHEMES = ("file", "s3", "memory")
_MEMORY_LOCK = threading.Lock()  # memory:// has no conditional put of its own
# S3 error codes of a conditional put. Where the server sends no body, botocore's code is the HTTP status.
_EXISTS = {"PreconditionFailed", "412"}
_UNDECIDED = {"ConditionalRequestConflict", "OperationAborted", "409"}  # another put is under way: try again
_PUT_ATTEMPTS = 6
_CONNECT_S = 10.0


@dataclass(frozen=True)
class Store:
    """A root in object storage; every path given to a method is relative to it.

    Picklable (options only, no connection, no secret), so that Ray tasks can carry it. Each process reads the
    credentials itself, at each use: those in a file may be renewed under a running job.
    """

    root: str  # scheme://path without a trailing slash
    access: S3Access = field(default_factory=S3Access)

    @property
    def scheme(self) -> str:
        """ "file", "s3" or "memory"."""
        return self.root.partition("://")[0]

    def filesystem(self) -> AbstractFileSystem:
        """The fsspec filesystem of the scheme; fsspec keeps one for equal options."""
        import fsspec

        return fsspec.filesystem(self.scheme, **(_s3_options(self.access) if self.scheme == "s3" else {}))

    def key(self, path: str = "") -> str:
        """The filesystem's own name of ``path``: no scheme, and for file:// an absolute path."""
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"{path!r} leaves the store", hint="use a path relative to the store's root")
        base = self.root.partition("://")[2]
        return f"{base}/{path}".rstrip("/") if path else base

    def uri(self, path: str = "") -> str:
        """The full URI of ``path``."""
        return f"{self.scheme}://{self.key(path)}"

    def local(self, path: str = "") -> Path | None:
        """The local path for file:// stores, else None."""
        return Path(self.key(path)) if self.scheme == "file" else None

    def at(self, path: str) -> Store:
        """The store rooted at ``path`` below this one."""
        return replace(self, root=self.uri(path))

    def exists(self, path: str) -> bool:
        """Whether an object (or, on file://, a folder) is there."""
        with _translated(self, path):
            fs = self.filesystem()
            fs.invalidate_cache()
            return bool(fs.exists(self.key(path)))

    def list(self, prefix: str = "") -> list[str]:
        """Sorted relative paths of all objects below ``prefix``; empty when there are none."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Size in bytes by relative path, sorted, of all objects below ``prefix``, by one listing."""
        with _translated(self, prefix):
            fs = self.filesystem()
            fs.invalidate_cache()
            base = self.key()
            found = fs.find(self.key(prefix), detail=True)
        start = base.lstrip("/") if self.scheme == "s3" else base
        sizes = {_relative(name, start): int(info.get("size") or 0) for name, info in found.items()}
        return {
            name: sizes[name] for name in sorted(sizes) if not name.rpartition("/")[2].startswith(".partial-")
        }

    def size(self, path: str) -> int:
        """Size of one object in bytes."""
        with _translated(self, path):
            return int(self.filesystem().size(self.key(path)))

    def read_bytes(self, path: str, end: int | None = None) -> bytes:
        """The whole object, or its first ``end`` bytes; StorageError when it is not there."""
        with _translated(self, path):
            return bytes(self.filesystem().cat_file(self.key(path), end=end))

    def open(self, path: str) -> IO[bytes]:
        """Open one object for reading."""
        with _translated(self, path):
            handle: IO[bytes] = self.filesystem().open(self.key(path), "rb")
            return handle

    def write_bytes(self, path: str, content: bytes, *, if_absent: bool = False) -> bool:
        """Write one object atomically: readers see all of it or nothing.

        With ``if_absent`` the write happens only where nothing is there yet (S3: If-None-Match;
        file://: link of a finished file); the result says whether this call wrote it.
        """
        with _translated(self, path):
            if self.scheme == "file":
                return _write_file(Path(self.key(path)), content, if_absent)
            fs = self.filesystem()
            if not if_absent:
                fs.pipe_file(self.key(path), content)
                return True
            return _put_if_absent(fs, self.key(path), content)

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to ``path`` atomically."""
        with _translated(self, path):
            if self.scheme == "file":
                _copy_file(source, Path(self.key(path)))
            else:
                self.filesystem().put_file(str(source), self.key(path))

    def download(self, path: str, target: Path) -> None:
        """Copy an object to a local file atomically."""
        with _translated(self, path), _partial(target) as partial:
            self.filesystem().get_file(self.key(path), str(partial))
            partial.replace(target)

    def delete(self, prefix: str) -> None:
        """Delete an object, or everything below a prefix; nothing there is no error."""
        with _translated(self, prefix):
            fs = self.filesystem()
            fs.invalidate_cache()
            if fs.exists(self.key(prefix)):
                fs.rm(self.key(prefix), recursive=True)


def open_store(uri: str, access: S3Access | None = None) -> Store:
    """Open the store at ``uri``: file://PATH (relative allowed), a plain path, s3://BUCKET/PREFIX, memory://NAME.

    Raises ConfigError on another scheme, or when a local root is a file.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        scheme, rest = "file", uri
    if scheme not in SCHEMES or not rest.strip("/"):
        raise ConfigError(
            f"storage {uri!r} is not supported", hint="use file://PATH, s3://BUCKET/PREFIX or a path"
        )
    if scheme == "file":
        try:
            path = Path(rest).expanduser().absolute()
            taken = path.exists() and not path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # ~NOBODY, or below a folder that is not ours
            raise ConfigError(f"storage {uri!r}: {error}", hint="name another folder") from None
        if taken:
            raise ConfigError(f"storage {uri!r} is a file, expected a folder", hint="name a folder")
        rest = os.path.normpath(path)
    elif scheme == "memory":
        rest = "/" + rest.strip("/")
    return Store(f"{scheme}://{rest.rstrip('/')}", access or S3Access())


def store_of(run: RunConfig) -> Store:
    """The store that all artifacts of ``run`` live in."""
    return store_at(run, run.workspace)


def store_at(run: RunConfig, uri: str) -> Store:
    """The store at ``uri``, reached with the options of ``run.storage``."""
    return open_store(uri, run.storage.access(uri))


def _s3_options(access: S3Access) -> dict[str, Any]:
    """s3fs' options; raises ConfigError where the credentials or the file of authorities cannot be read."""
    if access.ca_bundle and not Path(access.ca_bundle).is_file():
        raise ConfigError(f"storage.ca_bundle: {access.ca_bundle} is no file", hint="name a PEM file")
    client = {"region_name": access.region, "verify": access.ca_bundle or access.verify}
    config = {
        "s3": {"addressing_style": access.addressing_style},
        "retries": {"mode": "standard", "max_attempts": access.max_attempts},
        "connect_timeout": min(_CONNECT_S, access.timeout_s),
        "read_timeout": access.timeout_s,
    }
    return {
        "endpoint_url": access.endpoint_url,
        "profile": access.profile,
        "client_kwargs": client,
        "config_kwargs": config,
        **(_keys(access.credentials_ref) if access.credentials_ref else {}),
    }


def _keys(reference: str) -> dict[str, str]:
    parts = secret(reference).split(":")
    if len(parts) not in {2, 3} or not all(parts):
        raise ConfigError(
            f"{reference}: not credentials of S3",
            hint="write ACCESS_KEY_ID:SECRET_ACCESS_KEY, or with :SESSION_TOKEN behind",
        )
    return dict(zip(("key", "secret", "token"), parts, strict=False))


def _relative(name: str, base: str) -> str:
    return name.removeprefix(base).lstrip("/")


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A name beside ``target`` to write to; what is left under it is removed."""
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in made:
        _sync(folder.parent)
    partial = target.parent / f".partial-{uuid.uuid4().hex}"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _write_file(target: Path, content: bytes, if_absent: bool) -> bool:
    with _partial(target) as partial:
        partial.write_bytes(content)
        _sync(partial)
        if if_absent:
            try:
                os.link(partial, target)  # atomic, and fails where another writer was first
            except FileExistsError:
                return False
        else:
            partial.replace(target)
        _sync(target.parent)
        return True


def _copy_file(source: Path, target: Path) -> None:
    with _partial(target) as partial:
        shutil.copyfile(source, partial)
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)


def _sync(path: Path) -> None:
    """Force a file's content, or a folder's names, onto the disk.

    A manifest is written after its files; without this a power loss could keep it and lose them.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network file systems cannot do it for folders, and a parent may be closed to us.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EACCES} or not path.is_dir():
            raise


def sync_folder(folder: Path) -> None:
    """Force every file of a local folder, and then their names, onto the disk."""
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _put_if_absent(fs: Any, key: str, content: bytes) -> bool:
    if fs.protocol == "memory":
        with _MEMORY_LOCK:
            if fs.exists(key):
                return False
            fs.pipe_file(key, content)
            return True
    bucket, _, name = key.partition("/")
    attempt = 1
    while True:
        try:
            fs.call_s3("put_object", Bucket=bucket, Key=name, Body=content, IfNoneMatch="*")
            return True
        except Exception as error:
            code = _s3_code(error)
            if code in _EXISTS:
                return False
            if code not in _UNDECIDED or attempt == _PUT_ATTEMPTS:
                raise
        time.sleep(0.05 * 2**attempt)
        attempt += 1


def _s3_code(error: BaseException) -> str | None:
    """The server's own error code; s3fs translates botocore's error and keeps it as the cause."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


@contextmanager
def _translated(store: Store, path: str) -> Iterator[None]:
    """Turn the backends' errors into StorageError with a cause and a next act."""
    where = store.uri(path)
    try:
        yield
    except FileNotFoundError:
        raise StorageError(
            f"{where}: not found", hint="check the path, or run the step that writes it"
        ) from None
    except PermissionError:
        raise StorageError(f"{where}: permission denied", hint="check the owner or the credentials") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageError(
                f"{where}: no space left", hint="free space and run the command again"
            ) from None
        raise StorageError(
            f"{where}: {error.strerror or error}", hint="check the store and try again"
        ) from None
    except Exception as error:
        if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "s3fs")):
            raise StorageError(
                f"{where}: {error}",
                hint="check endpoint, region, credentials, ca_bundle of storage",
            ) from None
        raise
