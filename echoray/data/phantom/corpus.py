"""A corpus of synthetic studies on disk: ``study-00012/*.dcm`` and, for tests only, ``truth.jsonl``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from echoray.config.data import PhantomConfig
from echoray.data.phantom.dicom import write_study
from echoray.data.phantom.identity import Patient
from echoray.data.phantom.study import (
    FAULTS,
    Fault,
    derive_rng,
    patient_of,
    synthesize_study,
    system_of,
)
from echoray.storage import Store, open_store
from echoray.types import Language, Progress

ALWAYS_FAULTY_FROM = 20  # studies from which on each fault with a rate above zero occurs at least once


@dataclass(frozen=True)
class StudyRecord:
    """What ``write_one`` did: counts, and the study's line of ``truth.jsonl``."""

    index: int
    system: str
    fault: str | None
    num_frames: int
    num_files: int
    num_bytes: int
    truth_json: str


@dataclass(frozen=True)
class CorpusReport:
    """Counts of a written corpus."""

    num_studies: int
    num_frames: int
    num_files: int
    num_bytes: int
    systems: Mapping[str, int]
    faults: Mapping[str, int]


def write_corpus(
    out: Path, config: PhantomConfig, *, seed: int, language: Language, progress: Progress | None = None
) -> CorpusReport:
    """Write the whole corpus in this process; for many studies map ``write_one`` over the indices instead."""
    records = []
    for index in range(config.num_studies):
        records.append(write_one(index, out, config, seed=seed, language=language))
        if progress is not None:
            progress("corpus", index + 1, config.num_studies)
    return finish_corpus(open_store(str(out)), records)


def write_one(index: int, out: Path, config: PhantomConfig, *, seed: int, language: Language) -> StudyRecord:
    """Write study ``index`` below ``out``; depends on the arguments only, so any worker may do it."""
    study = synthesize_study(
        index,
        seed=seed,
        language=language,
        width=config.width,
        height=config.height,
        fault=fault_of(index, config, seed),
        patient=_patient(index, config, seed, language),
    )
    paths = write_study(study, out / f"study-{index:05d}")
    return StudyRecord(
        index,
        study.truth.system,
        study.truth.fault,
        len(study.frames),
        len(paths),
        sum(path.stat().st_size for path in paths),
        json.dumps(asdict(study.truth), ensure_ascii=False, sort_keys=True),
    )


def finish_corpus(out: Store, records: Iterable[StudyRecord]) -> CorpusReport:
    """Write ``truth.jsonl`` (never read by training) and count."""
    rows = sorted(records, key=lambda record: record.index)
    lines = "".join(record.truth_json + "\n" for record in rows)
    out.write_bytes("truth.jsonl", lines.encode())
    return CorpusReport(
        len(rows),
        sum(record.num_frames for record in rows),
        sum(record.num_files for record in rows),
        sum(record.num_bytes for record in rows),
        dict(Counter(record.system for record in rows)),
        dict(Counter(record.fault for record in rows if record.fault)),
    )


def fault_of(index: int, config: PhantomConfig, seed: int) -> Fault | None:
    """The fault of study ``index``: rates times studies (at least one of 20), at places from the seed."""
    rates = {
        "multi_region": config.multi_region_rate,
        "no_report": config.no_report_rate,
        "corrupt": config.corrupt_rate,
    }
    least = 1 if config.num_studies >= ALWAYS_FAULTY_FROM else 0
    faults = [
        name
        for name in FAULTS
        for _ in range(max(round(rates[name] * config.num_studies), least if rates[name] else 0))
    ]
    faults = faults[: config.num_studies]
    places = derive_rng(seed, 0, "faults").choice(config.num_studies, len(faults), replace=False)
    return dict(zip(places.tolist(), faults, strict=True)).get(index)


def patient_ordinal(index: int, two_studies_rate: float) -> int:
    """Whose study ``index`` is: patient k has study k + floor(k * rate) and, at that rate, the next one."""
    ordinal = int((index + 1) / (1 + two_studies_rate)) + 1
    while _first_study(ordinal, two_studies_rate) > index:
        ordinal -= 1
    return ordinal


def _first_study(ordinal: int, rate: float) -> int:
    return ordinal + int(ordinal * rate)


def _patient(index: int, config: PhantomConfig, seed: int, language: Language) -> Patient:
    rate = config.patients_with_two_studies_rate
    ordinal = patient_ordinal(index, rate)
    studies = range(_first_study(ordinal, rate), _first_study(ordinal + 1, rate))
    return patient_of(
        ordinal, seed=seed, language=language, systems=tuple(system_of(study) for study in studies)
    )
