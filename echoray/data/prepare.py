"""What a worker does to a folder of DICOM files: read, filter, de-identify, split, draw the pictures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from echoray.config import DataConfig, secret
from echoray.config.data import SYNTHETIC_KEY
from echoray.data.deidentify import Deidentifier
from echoray.data.frames import model_picture
from echoray.data.quality import frame_rejection, perceptual_hash, study_rejection
from echoray.data.sources.dicom import StudyFiles, read_studies
from echoray.data.split import split_of
from echoray.types import Frame, Rejection, Study

STEPS = ("read", "frames", "studies", "deidentify")
# A public key: pseudonyms of synthetic and published studies protect nobody and should be reproducible.
_PUBLIC_KEY = b"echoray synthetic studies"


def deid_key(config: DataConfig) -> bytes:
    """The HMAC key that ``data.deidentify.key_ref`` names."""
    reference = config.deidentify.key_ref
    return _PUBLIC_KEY if reference == SYNTHETIC_KEY else secret(reference).encode()


class PrepareFolders:
    """A Ray Data actor: folders in, one row per folder out (clean studies, rejections and counts inside)."""

    def __init__(self, config: DataConfig, key: bytes, seed: int) -> None:
        self.config, self.key, self.seed = config, key, seed
        self.deidentifier = Deidentifier(pixels=config.deidentify.pixels)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's row function."""
        studies, rejections, counts = self.prepare(StudyFiles(**row["folder"]))
        return {
            "studies": studies,
            "rejections": json.dumps([asdict(one) for one in rejections]),
            "counts": json.dumps(counts),
        }

    def prepare(self, files: StudyFiles) -> tuple[list[dict[str, Any]], list[Rejection], dict[str, int]]:
        """Clean study rows, rejections, and the number of records that entered and left each step."""
        counts: Counter[str] = Counter({"read_in": len(files.paths)})
        studies, rejections = read_studies(
            files, key=self.key, language=self.config.language, max_frames=self.config.max_frames
        )
        counts["read_out"] = len(files.paths) - len(rejections)
        rows = []
        for study in studies:
            kept = self._filter(study, rejections, counts)
            clean = None if kept is None else self._clean(kept, rejections, counts)
            if clean is not None:
                rows.append(self._row(clean))
        return rows, rejections, dict(counts)

    def _filter(self, study: Study, rejections: list[Rejection], counts: Counter[str]) -> Study | None:
        frames: list[Frame] = []
        for number, frame in enumerate(study.frames):
            reason = frame_rejection(frame, [perceptual_hash(one.pixels) for one in frames])
            if reason is None:
                frames.append(frame)
            else:
                rejections.append(Rejection(f"{study.study_hash}/{number}", "frames", reason))
        counts["frames_in"] += len(study.frames)
        counts["frames_out"] += len(frames)
        counts["studies_in"] += 1
        study = replace(study, frames=tuple(frames))
        reason = study_rejection(study)
        if reason is not None:
            rejections.append(Rejection(study.study_hash, "studies", reason))
            return None
        counts["studies_out"] += 1
        return study

    def _clean(self, study: Study, rejections: list[Rejection], counts: Counter[str]) -> Study | None:
        counts["deidentify_in"] += 1
        clean = self.deidentifier.deidentify(study)
        if isinstance(clean, Rejection):
            rejections.append(clean)
            return None
        counts["deidentify_out"] += 1
        return clean

    def _row(self, study: Study) -> dict[str, Any]:
        assert study.report is not None
        return {
            "study_hash": study.study_hash,
            "patient_key": study.patient_key,
            "system": study.system,
            "language": study.language,
            "findings": study.report.findings,
            "impression": study.report.impression,
            "images": [model_picture(frame.pixels, self.config.image_size_px) for frame in study.frames],
            "split": split_of(study.patient_key, self.config.split, seed=self.seed),
            "source": study.source,
        }
