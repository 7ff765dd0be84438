"""Synthetic ultrasound studies with ground truth, for the demo and for tests; not for clinical claims."""

from __future__ import annotations

from echoray.data.phantom.corpus import CorpusReport, StudyRecord, finish_corpus, write_corpus, write_one
from echoray.data.phantom.dicom import write_study
from echoray.data.phantom.physics import simulate
from echoray.data.phantom.study import PhantomStudy, Truth, synthesize_study

__all__ = [
    "CorpusReport",
    "PhantomStudy",
    "StudyRecord",
    "Truth",
    "finish_corpus",
    "simulate",
    "synthesize_study",
    "write_corpus",
    "write_one",
    "write_study",
]
