"""Which files make up a study: an index of whole sources by Study Instance UID (0020,000D).

Archives lay a study out in one folder, in a folder per series, or in several places; only the UID tells.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from echoray.config import digest
from echoray.data.sources.quiet import without_warnings
from echoray.errors import InputDataError, StorageError
from echoray.storage import Store

if TYPE_CHECKING:
    from pydicom import Dataset

ULTRASOUND = "US"
DICOM = "dicom"  # the kind of a study that headers make up
CORPUS, PACKAGE, ARCHIVE, DICOMWEB = "corpus", "package-samples", "dicom", "dicomweb"
HEADER_BYTES = 64 * 1024  # enough for groups 0002 to 0020 of nearly every file; else the whole file is read
_OWN_FILES = {"truth.jsonl", "manifest.json"}  # what a synthetic corpus holds beside its studies
_STUDY_UID = 0x0020000D


class FileStore(Protocol):
    """What the files of a source are read through; picklable."""

    @property
    def scheme(self) -> str:
        """ "file", "s3", "memory" or "dicomweb"."""

    def read_bytes(self, path: str, end: int | None = None) -> bytes:
        """The content (its first ``end`` bytes); StorageError, raised from what went wrong."""


@dataclass(frozen=True)
class Header:
    """What the index knows of a file; ``study_uid`` is empty where the header has none."""

    study_uid: str
    is_image: bool


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: of the corpus, or of the archive at position ``number`` in the configuration.

    ``header`` is known where the source's listing says it; elsewhere the file must be asked.
    """

    store: FileStore
    path: str
    source: str
    number: int = 0
    size: int = 0  # bytes, as listed; of an instance in an archive, whose content never changes, its frames
    header: Header | None = None

    @property
    def name(self) -> str:
        """What keyed hashes are made of: the same wherever the source lies. It may name a patient."""
        return f"{self.source}-{self.number}/{self.path}"

    def read_bytes(self, end: int | None = None) -> bytes | None:
        """The content (its first ``end`` bytes), or None where this one file cannot be read.

        Raises StorageError, which names no file, where the store as a whole does not answer.
        """
        try:
            return self.store.read_bytes(self.path, end=end)
        except StorageError as error:
            cause = error.__context__
            lasting = OSError if self.store.scheme == "file" else (FileNotFoundError, PermissionError)
            # S3 refuses a range of an empty object, and says so with an OSError.
            if isinstance(cause, lasting) or (end is not None and isinstance(cause, OSError)):
                return None
            if self.store.scheme == DICOMWEB:  # says what is wrong with the server, and names no instance
                raise
            raise StorageError(
                f"a file of source {self.source}-{self.number} could not be read ({type(cause).__name__})",
                hint="check endpoint, region and credentials, then run the command again",
            ) from None


@dataclass(frozen=True)
class Listing:
    """The files of one source in order, and a digest of their relative paths and sizes."""

    files: tuple[SourceFile, ...]
    digest: str


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study. ``identity`` is unique among all sources; ``study_uid`` is the header's own.

    ``study_uid`` is None for a file whose header the index could not read. ``kind`` names the reader, and
    ``record`` is what the source's own table says of the study (JSON), where it has one.
    """

    identity: str
    study_uid: str | None
    files: tuple[SourceFile, ...]
    num_images: int  # files with pixels
    kind: str = DICOM
    record: str = ""


def list_source(store: Store, source: str, number: int = 0) -> Listing:
    """List the files below a store; InputDataError where there is no such folder or it holds no file."""
    sizes = {path: size for path, size in store.sizes().items() if path.rpartition("/")[2] not in _OWN_FILES}
    if not sizes:
        raise InputDataError(
            f"{store.root}: missing or empty, expected DICOM files", hint="check data.source.dicom_uris"
        )
    files = (
        SourceFile(
            store, path, PACKAGE if source == CORPUS and path.startswith(PACKAGE) else source, number, size
        )
        for path, size in sizes.items()
    )
    return Listing(tuple(files), digest(list(sizes.items())))


def read_header(file: SourceFile) -> Header | None:
    """The file's study and kind, or None where it cannot be read or is not DICOM."""
    if file.header is not None:
        return file.header
    content = file.read_bytes(end=HEADER_BYTES)
    if content is None:
        return None
    with without_warnings():
        found = _parse(content)
        if found is _CUT and len(content) == HEADER_BYTES:
            whole = file.read_bytes()
            found = None if whole is None else _parse(whole)
    return found if isinstance(found, Header) else None


_CUT = "cut"  # the content ends before the UID's place


def _parse(content: bytes) -> Header | str | None:
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial

    passed = False

    def beyond(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal passed
        passed = int(tag) > _STUDY_UID
        return passed

    try:
        dataset = read_partial(io.BytesIO(content), stop_when=beyond)
        header = Header(study_uid(dataset), dataset.get("Modality") == ULTRASOUND)
    except InvalidDicomError:
        return None
    except Exception:  # a damaged header may raise anything, and so may a cut one
        return _CUT
    return header if passed or len(content) < HEADER_BYTES else _CUT


def study_uid(dataset: Dataset) -> str:
    """The Study Instance UID as written, or an empty string."""
    return str(dataset.get("StudyInstanceUID") or "").strip()


def group_studies(files: Iterable[SourceFile], headers: Sequence[Header | None]) -> list[StudyFiles]:
    """The studies of all sources in the order of their first files; every file is in exactly one.

    Files without a readable UID stand alone, and so do package samples, which share example UIDs though
    they are unrelated.
    """
    groups: dict[tuple[str, str], list[tuple[SourceFile, Header | None]]] = {}
    for file, header in zip(files, headers, strict=True):
        shared = header is not None and header.study_uid and file.source != PACKAGE
        place = ("study", header.study_uid) if header and shared else ("file", file.name)
        groups.setdefault(place, []).append((file, header))
    return [
        StudyFiles(
            identity=identity,
            study_uid=None if members[0][1] is None else members[0][1].study_uid,
            files=tuple(file for file, _ in members),
            num_images=sum(header is not None and header.is_image for _, header in members),
        )
        for (_, identity), members in groups.items()
    ]
