"""What a worker does to the files of a study: read, filter, de-identify, split, draw the pictures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from echoray.config import DataConfig, secret
from echoray.config.data import SYNTHETIC_KEY
from echoray.data.deidentify import Deidentifier
from echoray.data.fingerprint import frame_fingerprint, near_any
from echoray.data.frames import model_picture
from echoray.data.ledger import packed
from echoray.data.quality import frame_rejection, study_rejection
from echoray.data.sources.dicom import evenly, read_study
from echoray.data.sources.index import StudyFiles
from echoray.data.split import split_of
from echoray.types import Rejection, Report, Study

# In this order, so that every picture that is read, of a usable study or not, takes the same path.
STEPS = ("read", "frames", "deidentify", "studies")
# A public key: pseudonyms of synthetic and published studies protect nobody and should be reproducible.
_PUBLIC_KEY = b"echoray synthetic studies"


def deid_key(config: DataConfig) -> bytes:
    """The HMAC key that ``data.deidentify.key_ref`` names."""
    reference = config.deidentify.key_ref
    return _PUBLIC_KEY if reference == SYNTHETIC_KEY else secret(reference).encode()


class PrepareStudies:
    """A Ray Data actor: a study's files in, one row out (the clean study if any, rejections and counts)."""

    def __init__(self, config: DataConfig, key: bytes, seed: int) -> None:
        self.config, self.key, self.seed = config, key, seed
        self.deidentifier = Deidentifier(pixels=config.deidentify.pixels)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's row function."""
        studies, rejections, counts = self.prepare(StudyFiles(**row["study"]))
        return {
            "studies": studies,
            "rejections": packed(rejections),
            "counts": json.dumps(counts),
        }

    def prepare(self, files: StudyFiles) -> tuple[list[dict[str, Any]], list[Rejection], dict[str, int]]:
        """At most one clean study's row, rejections, and how many records entered and left each step."""
        study, rejections = read_study(
            files, key=self.key, language=self.config.language, max_frames=self.config.max_frames
        )
        counts = Counter({"read_in": len(files.files), "read_out": len(files.files) - len(rejections)})
        rows = []
        if study is not None:
            clean = self._clean(self._filter_frames(study, rejections, counts), rejections, counts)
            if clean is not None and self._usable(clean, rejections, counts):
                rows.append(self._row(clean))
        return rows, rejections, dict(counts)

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
        report = study.report or Report("", "")
        return {
            "study_hash": study.study_hash,
            "patient_key": study.patient_key,
            "system": study.system,
            "language": study.language,
            "findings": report.findings,
            "impression": report.impression,
            "turns": json.dumps([asdict(one) for one in study.turns], ensure_ascii=False),
            "images": [model_picture(frame.pixels, self.config.image_size_px) for frame in study.frames],
            # Of the clean frames: the audit compares what a model could see, not who is named above it.
            "fingerprints": [frame_fingerprint(frame.pixels) for frame in study.frames],
            "split": split_of(study.patient_key, self.config.split, seed=self.seed),
            "source": study.source,
        }
