"""What a worker does to the files of a study: read, filter, de-identify, split, draw the pictures, write."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from echoray.config import DataConfig, secret
from echoray.config.data import SYNTHETIC_KEY
from echoray.data.batch import grid_of
from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.keys import keyed_hash
from echoray.data.fingerprint import frame_fingerprint, near_any
from echoray.data.frames import model_picture
from echoray.data.leaks import AUDIT_STEP
from echoray.data.parts import Attempts, commit, part_name, read_rows, to_parquet
from echoray.data.quality import frame_rejection, study_rejection
from echoray.data.records import FORGOTTEN, StudyRecord, fingerprint
from echoray.data.sources.conversations import CONVERSATIONS, read_conversation
from echoray.data.sources.dicom import evenly, read_study
from echoray.data.sources.image_report import IMAGE_REPORT, read_image_report
from echoray.data.sources.index import DICOM, StudyFiles
from echoray.data.split import split_of
from echoray.storage import Store
from echoray.types import ArtifactRef, Rejection, Report, Study

if TYPE_CHECKING:
    import pyarrow as pa

# In this order, so that every picture that is read, of a usable study or not, takes the same path.
STEPS = ("read", "frames", "deidentify", "studies", AUDIT_STEP)
_READERS = {DICOM: read_study, IMAGE_REPORT: read_image_report, CONVERSATIONS: read_conversation}
# A public key: pseudonyms of synthetic and published studies protect nobody and should be reproducible.
_PUBLIC_KEY = b"echoray synthetic studies"


@cache
def study_schema() -> pa.Schema:
    """Columns of a clean study's row; images are PNG."""
    import pyarrow as pa

    texts = (
        "study_hash",
        "patient_key",
        "system",
        "language",
        "findings",
        "impression",
        "turns",
        "split",
        "source",
    )
    fields = [
        *((name, pa.string()) for name in texts),
        ("images", pa.list_(pa.binary())),
        ("grid_thw", pa.list_(pa.int32())),
    ]
    return pa.schema(fields)


def deid_key(config: DataConfig) -> bytes:
    """The HMAC key that ``data.deidentify.key_ref`` names."""
    reference = config.deidentify.key_ref
    return _PUBLIC_KEY if reference == SYNTHETIC_KEY else secret(reference).encode()


class PrepareStudies:
    """Turns the files of one study into at most one clean row, and a record of what became of them."""

    def __init__(
        self, config: DataConfig, key: bytes, seed: int, forgotten: frozenset[str] = frozenset()
    ) -> None:
        self.config, self.key, self.seed, self.forgotten = config, key, seed, forgotten
        self.deidentifier = Deidentifier(pixels=config.deidentify.pixels)

    def prepare(self, files: StudyFiles) -> tuple[dict[str, Any] | None, StudyRecord]:
        """The clean study's row if there is one, and the study's record."""
        study, rejections = _READERS[files.kind](
            files, key=self.key, language=self.config.language, max_frames=self.config.max_frames
        )
        num_records = len(files.files) if files.kind == DICOM else 1
        counts = Counter({"read_in": num_records, "read_out": num_records - len(rejections)})
        clean = None if study is None else self._made(study, rejections, counts)
        record = StudyRecord(
            study_hash=keyed_hash(self.key, files.identity),
            patient_key="" if study is None else study.patient_key,
            counts=dict(counts),
            rejections=tuple(rejections),
            fingerprint=fingerprint(files, self.key),
        )
        if clean is None:
            return None, record
        row = self._row(clean)
        frames = tuple(frame_fingerprint(frame.pixels).hex() for frame in clean.frames)
        return row, replace(record, split=row["split"], frames=frames)

    def refused(self, files: StudyFiles, reason: str) -> StudyRecord:
        """The record of a study whose files are rejected unread."""
        names = [file.name for file in files.files] if files.kind == DICOM else [files.identity]
        rejections = tuple(Rejection(keyed_hash(self.key, name), "read", reason) for name in names)
        return StudyRecord(
            study_hash=keyed_hash(self.key, files.identity),
            counts={"read_in": len(names), "read_out": 0},
            rejections=rejections,
            fingerprint=fingerprint(files, self.key),
        )

    def _made(self, study: Study, rejections: list[Rejection], counts: Counter[str]) -> Study | None:
        if study.patient_key in self.forgotten:
            counts["deidentify_in"] += 1
            rejections.append(Rejection(study.study_hash, "deidentify", FORGOTTEN))
            return None
        clean = self._clean(self._filter_frames(study, rejections, counts), rejections, counts)
        return clean if clean is not None and self._usable(clean, rejections, counts) else None

    def _filter_frames(self, study: Study, rejections: list[Rejection], counts: Counter[str]) -> Study:
        """Drop frames that are not used, then, of those left, all but an even sample of ``max_frames``."""
        good: list[int] = []
        seen: list[bytes] = []
        reasons: dict[int, str] = {}
        for number, frame in enumerate(study.frames):
            reason = frame_rejection(frame)
            if reason is not None:
                reasons[number] = reason
                continue
            fingerprint = frame_fingerprint(frame.pixels)
            if near_any(fingerprint, seen):
                reasons[number] = "duplicate"
            else:
                good.append(number)
                seen.append(fingerprint)
        kept = [good[place] for place in evenly(len(good), self.config.max_frames)]
        reasons |= {number: "beyond_max_frames" for number in good if number not in kept}
        rejections += [Rejection(f"{study.study_hash}/{one}", "frames", why) for one, why in reasons.items()]
        counts["frames_in"] += len(study.frames)
        counts["frames_out"] += len(kept)
        return replace(study, frames=tuple(study.frames[number] for number in kept))

    def _clean(self, study: Study, rejections: list[Rejection], counts: Counter[str]) -> Study | None:
        counts["deidentify_in"] += 1
        clean = self.deidentifier.deidentify(study)
        if isinstance(clean, Rejection):
            rejections.append(clean)
            return None
        counts["deidentify_out"] += 1
        return clean

    def _usable(self, study: Study, rejections: list[Rejection], counts: Counter[str]) -> bool:
        counts["studies_in"] += 1
        reason = study_rejection(study)
        if reason is not None:
            rejections.append(Rejection(study.study_hash, "studies", reason))
            return False
        counts["studies_out"] += 1
        return True

    def _row(self, study: Study) -> dict[str, Any]:
        report, data = study.report or Report("", ""), self.config
        pictures = [model_picture(one.pixels, data.image_size_px, data.image_layout) for one in study.frames]
        return {
            "study_hash": study.study_hash,
            "patient_key": study.patient_key,
            "system": study.system,
            "language": study.language,
            "findings": report.findings,
            "impression": report.impression,
            "turns": json.dumps([asdict(one) for one in study.turns], ensure_ascii=False),
            "images": pictures,
            # Flat (t, h, w) in patches, so that nobody need read the pictures to know their number and size.
            "grid_thw": [side for one in pictures for side in grid_of(one)],
            "split": split_of(study.patient_key, data.split, seed=self.seed),
            "source": study.source,
        }


class WriteStudies:
    """A Ray Data actor: prepares the studies of a part and writes it, rows of an earlier version included."""

    def __init__(
        self,
        store: Store,
        ref: ArtifactRef,
        config: DataConfig,
        key: bytes,
        seed: int,
        forgotten: frozenset[str],
    ) -> None:
        self.store, self.ref = store, ref
        self.worker = PrepareStudies(config, key, seed, forgotten)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the part that ``row["work"]`` describes; its summary holds the records of its studies."""
        work = row["work"]
        rows, records = [], json.loads(work["records"])
        attempts = Attempts(self.store, self.ref, work["number"])
        for files in work["studies"]:
            made, record = self._prepared(StudyFiles(**files), attempts)
            rows += [] if made is None else [made]
            records.append(record.to_json())
        for path, hashes in json.loads(work["reused"]).items():
            rows += self._earlier(path, set(hashes))
        rows.sort(key=lambda one: str(one["study_hash"]))
        contents = {part_name(work["number"]): to_parquet(rows, study_schema())} if rows else {}
        return commit(self.store, self.ref, work["number"], contents, {"records": records})

    def _prepared(self, files: StudyFiles, attempts: Attempts) -> tuple[dict[str, Any] | None, StudyRecord]:
        if attempts.is_deadly(keyed_hash(self.worker.key, files.identity)):
            return None, self.worker.refused(files, "kills_worker")
        made = self.worker.prepare(files)
        attempts.survived()
        return made

    def _earlier(self, path: str, hashes: set[str]) -> list[dict[str, Any]]:
        return [one for one in read_rows(self.store, path) if one["study_hash"] in hashes]
