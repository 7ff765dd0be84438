"""What a changed archive makes new: the studies that changed and no others; only their files are opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from echoray.data.deidentify.keys import keyed_hash
from echoray.data.leaks import REASON as CROSSING
from echoray.data.records import FORGOTTEN, Index, StudyRecord, fingerprint
from echoray.data.sources.index import Header, SourceFile, StudyFiles
from echoray.data.survey import Survey, survey
from echoray.storage import open_store
from echoray.types import ArtifactRef, Rejection

KEY = b"key"
STORE = open_store("memory://survey")
REF = ArtifactRef("studies", "s", "0" * 64)
KEPT = {"studies_out": 1, "audit_out": 1}


def archive(**sizes: int) -> list[SourceFile]:
    """Files named STUDY_NUMBER."""
    return [SourceFile(STORE, name, "dicom", 0, size) for name, size in sizes.items()]


def surveyed(
    files: list[SourceFile],
    previous: Index | None = None,
    forgotten: Sequence[str] = (),
    tables: Sequence[StudyFiles] = (),
) -> tuple[Survey, set[str]]:
    opened: set[str] = set()

    def read(wanted: Sequence[SourceFile]) -> list[Header | None]:
        opened.update(file.path for file in wanted)
        return [Header(file.path.partition("_")[0], True) for file in wanted]

    return survey(files, tables, previous, key=KEY, forgotten=forgotten, read=read), opened


def index_of(found: Survey, **changes: StudyRecord) -> Index:
    hashes = {keyed_hash(KEY, one.identity): one.identity for one in found.studies} | dict.fromkeys(
        found.reused, ""
    )
    records = {
        one: changes.get(name, StudyRecord(one, patient_key=f"p{name}", counts=KEPT))
        for one, name in hashes.items()
    }
    return Index(REF, records, dict.fromkeys(records, 0), found.files)


def names(found: Survey) -> dict[str, list[str]]:
    return {one.identity: [file.path for file in one.files] for one in found.studies}


FILES = {"a_1": 1, "a_2": 2, "b_1": 3, "c_1": 4, "c_2": 5}


def test_an_unchanged_archive_opens_nothing() -> None:
    first, opened = surveyed(archive(**FILES))
    assert opened == set(FILES) and not first.reused
    second, opened = surveyed(archive(**FILES), index_of(first))
    assert not opened and not second.studies and len(second.reused) == 3
    assert second.files == first.files


def test_added_changed_and_removed_files_make_their_studies_again_whole() -> None:
    first, _ = surveyed(archive(**FILES))
    changed = {**FILES, "a_3": 9, "c_2": 6, "d_1": 7}
    del changed["b_1"]
    second, opened = surveyed(archive(**changed), index_of(first))
    assert names(second) == {"a": ["a_1", "a_2", "a_3"], "c": ["c_1", "c_2"], "d": ["d_1"]}
    assert not second.reused and opened == {"a_1", "a_2", "a_3", "c_1", "c_2", "d_1"}
    assert second.files == surveyed(archive(**changed))[0].files
    fewer, opened = surveyed(archive(a_1=1, b_1=3, c_1=4, c_2=5), index_of(first))
    assert names(fewer) == {"a": ["a_1"]} and opened == {"a_1"} and len(fewer.reused) == 2


def test_a_forgotten_patient_and_a_leak_are_looked_at_again_and_so_is_what_was_one() -> None:
    first, _ = surveyed(archive(**FILES))
    second, opened = surveyed(archive(**FILES), index_of(first), forgotten=["pb"])
    assert names(second) == {"b": ["b_1"]} and opened == {"b_1"}
    for reason, forgotten in ((FORGOTTEN, ()), (CROSSING, ())):
        name = keyed_hash(KEY, "b")
        was = StudyRecord(name, patient_key="pb", rejections=(Rejection(name, "x", reason),))
        again, _ = surveyed(archive(**FILES), index_of(first, b=was), forgotten)
        assert names(again) == {"b": ["b_1"]}
    still = replace(was, rejections=(Rejection(name, "x", FORGOTTEN),))
    assert not surveyed(archive(**FILES), index_of(first, b=still), ["pb"])[0].studies


def test_a_study_of_a_table_is_made_again_where_its_row_or_a_file_changed() -> None:
    def table(**changes: object) -> StudyFiles:
        files = tuple(archive(x_1=8))
        return replace(StudyFiles("t", None, files, 1, kind="image_report", record="{}"), **changes)

    record = StudyRecord(keyed_hash(KEY, "t"), counts=KEPT, fingerprint=fingerprint(table(), KEY))
    previous = Index(REF, {record.study_hash: record}, {record.study_hash: 0}, {})
    assert surveyed([], previous, tables=[table()])[0].reused == {record.study_hash: record}
    for changed in (table(record='{"a": 1}'), table(files=tuple(archive(x_1=9)))):
        assert surveyed([], previous, tables=[changed])[0].studies == (changed,)
