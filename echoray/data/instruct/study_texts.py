"""Reports and pictures of clean studies by their hash, from the parts in which they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from echoray.data.parts import part_paths, read_rows
from echoray.errors import InputDataError
from echoray.storage import Store
from echoray.types import ArtifactRef, Report

_PARTS_KEPT = 8
_TEXTS = ("study_hash", "findings", "impression")


class StudyTexts:
    """Looks studies up in a studies artifact; the texts of a few parts at a time are in memory."""

    def __init__(self, store: Store, studies: ArtifactRef) -> None:
        self._store, self._studies = store, studies
        self._kept: dict[str, dict[str, Report]] = {}

    def reports(self, hashes: Iterable[str]) -> Mapping[str, Report]:
        """The reports of studies by their hash; InputDataError where one is not in the artifact."""
        return {one: self._part(self._path(one))[one] for one in set(hashes)}

    def pictures(self, study_hash: str) -> list[bytes]:
        """The pictures (PNG) of a study, in their order."""
        import pyarrow.parquet as pq

        with self._store.open(self._path(study_hash)) as handle:
            table = pq.read_table(handle, columns=["images"], filters=[("study_hash", "=", study_hash)])
        return [bytes(one) for row in table.to_pylist() for one in row["images"]]

    def _path(self, study_hash: str) -> str:
        path = self._places.get(study_hash)
        if path is None:
            raise InputDataError(
                f"{self._store.uri(self._studies.path)}: has no study {study_hash[:16]}",
                hint="the items must be made from this version of the studies: make them again",
            )
        return path

    def _part(self, path: str) -> dict[str, Report]:
        if path not in self._kept:
            while len(self._kept) >= _PARTS_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[path] = {
                row["study_hash"]: Report(row["findings"] or "", row["impression"] or "")
                for row in read_rows(self._store, path, _TEXTS)
            }
        return self._kept[path]

    @cached_property
    def _places(self) -> dict[str, str]:
        """The part of each study; a hash and a path for each, whatever the studies' size."""
        return {
            row["study_hash"]: path
            for path in part_paths(self._store, self._studies)
            for row in read_rows(self._store, path, ("study_hash",))
        }
