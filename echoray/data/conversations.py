"""Rule-based conversations of a clean study: report, diagnosis, and questions that the report answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType

import numpy as np

from echoray.data.anatomy import SYSTEM_NAMES
from echoray.types import Conversation, Language, Report, Study, Turn

SYSTEM_PROMPT = MappingProxyType(
    {
        "en": "You write draft ultrasound reports for a clinician. Research use only.",
        "zh": "你为临床医生撰写超声报告草稿，仅供研究使用。",
    }
)
RESERVED = re.compile(r"<\|\w+\|>")  # how the model's chat format spells turns and images
# Wordings vary so that the model follows the intent; none of them names the organ.
REPORT_PROMPTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Write the ultrasound report for these images.",
        "Please provide the report of this examination.",
        "Can a corresponding medical report be provided based on these ultrasound images?",
    ),
    "zh": ("请写出这些超声图像的报告。", "请根据图像出具超声检查报告。", "请提供本次检查的报告。"),
}
DIAGNOSIS_PROMPTS: dict[Language, tuple[str, ...]] = {
    "en": ("What is the ultrasound diagnosis?", "Give the impression for these images."),
    "zh": ("超声诊断是什么？", "请给出这些图像的超声提示。"),
}
ORGAN_QUESTIONS: dict[Language, tuple[str, str]] = {
    "en": ("Which organ was examined?", "The {organ} was examined."),
    "zh": ("检查的是哪个器官？", "检查的是{organ}。"),
}
SIZE_QUESTIONS: dict[Language, str] = {"en": "How large is the lesion?", "zh": "病灶有多大？"}
SHADOW_QUESTIONS: dict[Language, tuple[str, str, str]] = {
    "en": (
        "Is there acoustic shadowing?",
        "Yes, acoustic shadowing is present.",
        "No acoustic shadowing is described.",
    ),
    "zh": ("有声影吗？", "有，后方可见声影。", "未描述声影。"),
}
_NUMBER, _UNIT = r"\d+(?:\.\d+)?", r"(?:mm|cm|毫米|厘米)"
# One to three axes, each with or without its unit; a velocity, an area and a pressure are no size.
_SIZE = re.compile(
    rf"(?<![\d.,~～–-]){_NUMBER}(?:\s*{_UNIT}?\s*(?:[x×*]|by)\s*{_NUMBER})*"
    rf"\s*{_UNIT}(?![a-z\d²³^]|\s*(?:/|Hg|每))",
    re.IGNORECASE,
)
_SHADOW = re.compile(r"shadow|声影", re.IGNORECASE)
_CLAUSE = re.compile(r"(?<=[.;])\s|[\n。；，]")
_NO_SHADOW = re.compile(
    r"\b(?:no|without)(?:\s+(?!but\b|with\b|and\b)[\w-]+){0,3}\s+shadow"
    r"|\bshadow\w*\s+(?:is|was)\s+(?:not|absent)"
    r"|(?:无(?!回声)|未见|未探及|不伴|没有)\w{0,4}声影",
    re.IGNORECASE,
)
# What denies, of the clause that it stands in.
NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence|free|neither|nor)\b|无(?!回声)|[未不没]", re.IGNORECASE
)


def conversations(study: Study, *, vqa_per_study: int, seed: int) -> list[Conversation]:
    """The imported turns, then, of the report, what ``report_turns`` makes."""
    return _numbered(study, [*study.turns, *report_turns(study, vqa_per_study=vqa_per_study, seed=seed)])


def imported(study: Study) -> list[Conversation]:
    """The imported turns alone."""
    return _numbered(study, study.turns)


def _numbered(study: Study, turns: Sequence[Turn]) -> list[Conversation]:
    assert study.system is not None
    return [
        Conversation(
            f"{study.study_hash[:16]}-{one.task}-{number}",
            study.study_hash,
            study.system,
            one.task,
            study.language,
            one.prompt,
            one.answer,
        )
        for number, one in enumerate(turns)
    ]


def report_turns(study: Study, *, vqa_per_study: int, seed: int) -> list[Turn]:
    """Report, diagnosis and up to ``vqa_per_study`` questions, chosen by (seed, study) alone."""
    if study.report is None:
        return []
    rng = study_rng(study.study_hash, seed)
    language, report = study.language, study.report
    made = [Turn("report", _one(rng, REPORT_PROMPTS[language]), report.text)]
    if report.impression:
        made.append(Turn("diagnosis", _one(rng, DIAGNOSIS_PROMPTS[language]), report.impression))
    questions = list(report_questions(study))
    for index in sorted(rng.permutation(len(questions))[:vqa_per_study]):
        made.append(Turn("vqa", *questions[index]))
    return made


def study_rng(study_hash: str, seed: int) -> np.random.Generator:
    """What is drawn about a study follows from (seed, study) alone."""
    return np.random.default_rng((seed, int(study_hash[:12], 16)))


def report_questions(study: Study) -> Iterator[tuple[str, str]]:
    """Questions that the report answers, by rules: the organ, a size, acoustic shadowing."""
    assert study.report is not None and study.system is not None
    language = study.language
    question, answer = ORGAN_QUESTIONS[language]
    yield question, answer.format(organ=SYSTEM_NAMES[language][study.system])
    size = extracted_size(study.report)
    if size:
        yield SIZE_QUESTIONS[language], size
    question, yes, no = SHADOW_QUESTIONS[language]
    shadow = described_shadow(study.report)
    if shadow is not None:
        yield question, yes if shadow else no


def described_shadow(report: Report) -> bool | None:
    """Whether the report describes acoustic shadowing; None where its wording leaves that open."""
    clauses = [one for one in _CLAUSE.split(report.text) if _SHADOW.search(one)]
    denied = [one for one in clauses if _NO_SHADOW.search(one)]
    if len(denied) == len(clauses):
        return False
    return None if any(NEGATION.search(one) for one in clauses) else True


def extracted_size(report: Report) -> str | None:
    """The first measurement as the report writes it, or None."""
    found = _SIZE.search(report.findings)
    return found[0] if found else None


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
