"""The configured sources that are no DICOM archives, listed: their records, and a digest for the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from echoray.config import RunConfig, digest
from echoray.data.sources.conversations import CONVERSATIONS, is_conversation_file, list_conversations
from echoray.data.sources.image_report import IMAGE_REPORT, TABLE, list_image_reports
from echoray.data.sources.index import StudyFiles
from echoray.data.sources.listed import Listed, Place
from echoray.errors import InputDataError
from echoray.storage import Store, store_at


@dataclass(frozen=True)
class TableListing:
    """The records of one source in order, unusable ones included, and a digest of all that they hold."""

    studies: tuple[StudyFiles, ...]
    digest: str


def list_tables(run: RunConfig) -> list[TableListing]:
    """List ``image_report_uris`` and ``conversation_uris``.

    Raises InputDataError where a source is missing or empty, or its table lacks a column.
    """
    source = run.data.source
    found = []
    for number, uri in enumerate(source.image_report_uris):
        folder, _ = folder_and_file(uri)
        place = place_of(store_at(run, folder), IMAGE_REPORT, number)
        found.append(_listing(list_image_reports(place), place, "data.source.image_report_uris"))
    for number, uri in enumerate(source.conversation_uris):
        folder, only = folder_and_file(uri)
        place = place_of(store_at(run, folder), CONVERSATIONS, number)
        found.append(_listing(list_conversations(place, only), place, "data.source.conversation_uris"))
    return found


def folder_and_file(uri: str) -> tuple[str, str]:
    """Folder and name of a conversation file or table; no name where ``uri`` is a folder or prefix."""
    folder, _, name = uri.rpartition("/")
    if not is_conversation_file(name) and name != TABLE:
        return uri, ""
    return (folder or ("/" if uri.startswith("/") else ".")), name


def place_of(store: Store, kind: str, number: int) -> Place:
    """The source at ``store`` with one listing of its files."""
    return Place(store, kind, number, store.sizes())


def _listing(records: Iterator[Listed], place: Place, key: str) -> TableListing:
    studies: list[StudyFiles] = []
    for one in records:
        if one.study is not None:
            studies.append(one.study)
            continue
        lacking = [defect.field for defect in one.defects if defect.fatal]
        if lacking:
            raise InputDataError(
                f"{place.store.uri(one.file)}: no column {', no column '.join(lacking)}",
                hint="`echoray data validate FOLDER` lists all defects of a table",
            )
    if not studies:
        raise InputDataError(f"{place.store.root}: missing, or without records", hint=f"check {key}")
    used = ([(file.path, place.sizes[file.path]) for file in one.files] for one in studies)
    return TableListing(
        tuple(studies),
        digest([[one.identity, one.record, files] for one, files in zip(studies, used, strict=True)]),
    )
