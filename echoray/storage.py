"""One storage layer over file://, s3:// and memory:// (fsspec): open, list, atomic write, conditional put."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from echoray.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from echoray.config import RunConfig

logger = logging.getLogger(__name__)

SCHEMES = ("file", "s3", "memory")
_MEMORY_LOCK = threading.Lock()  # memory:// has no conditional put of its own
_CONFLICT = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


@dataclass(frozen=True)
class Store:
    """A root in object storage; every path given to a method is relative to it.

    Picklable (options only, no open connection), so that Ray tasks can carry it.
    """

    root: str  # scheme://path without a trailing slash
    endpoint_url: str | None = None
    region: str | None = None

    @property
    def scheme(self) -> str:
        """ "file", "s3" or "memory"."""
        return self.root.partition("://")[0]

    def filesystem(self) -> AbstractFileSystem:
        """The fsspec filesystem of the scheme; credentials come from the environment."""
        import fsspec

        if self.scheme != "s3":
            return fsspec.filesystem(self.scheme)
        client = {"region_name": self.region} if self.region else {}
        return fsspec.filesystem("s3", endpoint_url=self.endpoint_url, client_kwargs=client)

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
        return Store(self.uri(path), self.endpoint_url, self.region)

    def exists(self, path: str) -> bool:
        """Whether an object (or, on file://, a folder) is there."""
        with _translated(self, path):
            fs = self.filesystem()
            fs.invalidate_cache()
            return bool(fs.exists(self.key(path)))

    def list(self, prefix: str = "") -> list[str]:
        """Sorted relative paths of all objects below ``prefix``; empty when there are none."""
        with _translated(self, prefix):
            fs = self.filesystem()
            fs.invalidate_cache()
            base = self.key()
            found = fs.find(self.key(prefix))
        start = base.lstrip("/") if self.scheme == "s3" else base
        names = (_relative(name, start) for name in found)
        return sorted(name for name in names if not name.rpartition("/")[2].startswith(".partial-"))

    def size(self, path: str) -> int:
        """Size of one object in bytes."""
        with _translated(self, path):
            return int(self.filesystem().size(self.key(path)))

    def read_bytes(self, path: str) -> bytes:
        """The whole object; StorageError when it is not there."""
        with _translated(self, path):
            return bytes(self.filesystem().cat_file(self.key(path)))

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
                target = Path(self.key(path))
                with _partial(target) as partial:
                    shutil.copyfile(source, partial)
                    partial.replace(target)
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


def open_store(uri: str, *, endpoint_url: str | None = None, region: str | None = None) -> Store:
    """Open the store at ``uri``: file://PATH (relative allowed), a plain path, s3://BUCKET/PREFIX, memory://NAME.

    Raises ConfigError on another scheme, or when a local root is a file.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        scheme, rest = "file", uri
    if scheme not in SCHEMES or (not rest.strip("/") and scheme != "file"):
        raise ConfigError(
            f"storage {uri!r} is not supported", hint="use file://PATH, s3://BUCKET/PREFIX or a path"
        )
    if scheme == "file":
        path = Path(rest).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise ConfigError(f"storage {uri!r} is a file, expected a folder", hint="name a folder")
        rest = os.path.normpath(path)
    elif scheme == "memory":
        rest = "/" + rest.strip("/")
    return Store(f"{scheme}://{rest.rstrip('/')}", endpoint_url, region)


def store_of(run: RunConfig) -> Store:
    """The store that all artifacts of ``run`` live in."""
    return open_store(run.workspace, endpoint_url=run.storage.endpoint_url, region=run.storage.region)


def _relative(name: str, base: str) -> str:
    return name.removeprefix(base).lstrip("/")


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".partial-{uuid.uuid4().hex}"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _write_file(target: Path, content: bytes, if_absent: bool) -> bool:
    with _partial(target) as partial:
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        if not if_absent:
            partial.replace(target)
            return True
        try:
            os.link(partial, target)  # atomic, and fails where another writer was first
        except FileExistsError:
            return False
        return True


def _put_if_absent(fs: Any, key: str, content: bytes) -> bool:
    if fs.protocol == "memory":
        with _MEMORY_LOCK:
            if fs.exists(key):
                return False
            fs.pipe_file(key, content)
            return True
    bucket, _, name = key.partition("/")
    try:
        fs.call_s3("put_object", Bucket=bucket, Key=name, Body=content, IfNoneMatch="*")
    except Exception as error:
        if isinstance(error, FileExistsError) or any(mark in str(error) for mark in _CONFLICT):
            return False
        raise
    return True


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
            raise StorageError(f"{where}: {error}", hint="check endpoint, region and credentials") from None
        raise
