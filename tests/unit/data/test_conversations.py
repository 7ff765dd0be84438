"""Conversations say nothing that the report does not, and give away no organ in their prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from echoray.data.anatomy import SYSTEM_NAMES, SYSTEM_WORDS, named_system
from echoray.data.conversations import (
    DIAGNOSIS_PROMPTS,
    ORGAN_QUESTIONS,
    REPORT_PROMPTS,
    SHADOW_QUESTIONS,
    SIZE_QUESTIONS,
    conversations,
    extracted_size,
)
from echoray.data.phantom.anatomy import KINDS, build_anatomy
from echoray.data.phantom.identity import Identity, draw_patient, draw_visit
from echoray.data.phantom.report import compose_report
from echoray.data.phantom.scene import Finding
from echoray.data.phantom.study import derive_rng
from echoray.types import SYSTEMS, Conversation, Language, Report, Study, System, Turn

LANGUAGES: tuple[Language, ...] = ("en", "zh")
ALL = 9  # more questions than there are


def study(name: str, system: System, language: Language, report: Report) -> Study:
    return Study(hashlib.sha256(name.encode()).hexdigest(), "p", system, language, (), report, "phantom")


@cache
def reported(language: Language) -> tuple[tuple[Study, Finding | None], ...]:
    """Every kind of finding of every system, with the truth that its report was written from."""
    made = []
    for system in SYSTEMS:
        for kind in KINDS[system]:
            for index in range(3):
                rng = derive_rng(1, index, f"{system} {kind}")
                anatomy = build_anatomy(system, kind, rng)
                patient = draw_patient(rng, language, female=True)
                identity = Identity(patient, draw_visit(rng, language, patient))
                _, clean = compose_report(anatomy, identity, language, rng)
                finding = anatomy.findings[0] if anatomy.findings else None
                made.append((study(f"{system} {kind} {index}", system, language, clean), finding))
    return tuple(made)


def made_of(language: Language, num: int = ALL) -> Iterator[tuple[Study, Finding | None, list[Conversation]]]:
    for one, finding in reported(language):
        yield one, finding, conversations(one, vqa_per_study=num, seed=7)


@pytest.mark.parametrize("language", LANGUAGES)
def test_conversations_depend_on_seed_and_study_alone(language: Language) -> None:
    studies = [one for one, _ in reported(language)]
    forward = [conversations(one, vqa_per_study=1, seed=7) for one in studies]
    backward = [conversations(one, vqa_per_study=1, seed=7) for one in studies[::-1]]
    assert forward == backward[::-1]
    other = [conversations(one, vqa_per_study=1, seed=8) for one in studies]
    changed = sum(a != b for a, b in zip(forward, other, strict=True))
    assert changed > len(studies) / 2
    ids = [one.example_id for made in forward for one in made]
    assert len(set(ids)) == len(ids)
    asked = {one.prompt for made in forward for one in made}
    assert asked >= {*REPORT_PROMPTS[language], *DIAGNOSIS_PROMPTS[language], SIZE_QUESTIONS[language]}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_answer_follows_from_the_report_and_the_truth_behind_it(language: Language) -> None:
    _, yes, no = SHADOW_QUESTIONS[language]
    shadows = set()
    for one, finding, made in made_of(language):
        assert one.report is not None and one.system is not None
        answers = {turn.prompt: turn.answer for turn in made}
        told = {turn.task: turn.answer for turn in made if turn.task != "vqa"}
        assert told == {"report": one.report.text, "diagnosis": one.report.impression}
        organ = answers[ORGAN_QUESTIONS[language][0]]
        assert named_system(organ) == named_system(one.report.text) == one.system
        size = answers.get(SIZE_QUESTIONS[language])
        assert (size is None) == (finding is None)
        if size is not None and finding is not None:
            assert size in one.report.findings
            assert [float(axis) for axis in size.replace("mm", "").replace("×", "x").split("x")] == [
                round(axis, 1) for axis in finding.size_mm
            ]
        shadow = bool(finding and finding.shadow)
        assert answers[SHADOW_QUESTIONS[language][0]] == (yes if shadow else no)
        shadows.add(shadow)
        assert {(turn.system, turn.language, turn.study_hash) for turn in made} == {
            (one.system, language, one.study_hash)
        }
    assert shadows == {True, False}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_prompt_names_an_organ(language: Language) -> None:
    words = {word for stems in SYSTEM_WORDS.values() for word in stems} | {*SYSTEM_NAMES[language].values()}
    prompts = {turn.prompt for _, _, made in made_of(language) for turn in made}
    assert len(prompts) >= 8
    for prompt in prompts:
        assert not [word for word in words if word in prompt.lower()], prompt


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("num", [0, 1, 2, ALL])
def test_a_study_has_as_many_questions_as_asked_for_and_answerable(language: Language, num: int) -> None:
    for _, finding, made in made_of(language, num):
        questions = [turn.prompt for turn in made if turn.task == "vqa"]
        assert len(questions) == len(set(questions)) == min(num, 2 + (finding is not None))
        assert [turn.task for turn in made][:2] == ["report", "diagnosis"]


def test_a_report_without_impression_has_no_diagnosis() -> None:
    one = study("findings only", "liver", "en", Report("The liver is smooth.", ""))
    assert [turn.task for turn in conversations(one, vqa_per_study=0, seed=7)] == ["report"]


@pytest.mark.parametrize(
    ("findings", "size"),
    [
        ("A cyst of 12.3 x 8.1 mm.", "12.3 x 8.1 mm"),
        ("A mass of 32 x 20 x 18 mm is seen.", "32 x 20 x 18 mm"),
        ("A mass of 32 mm x 20 mm by 18 mm.", "32 mm x 20 mm by 18 mm"),
        ("肿块大小约32mm×20mm×18mm，边界清。", "32mm×20mm×18mm"),
        ("结节约1.2*0.8厘米。", "1.2*0.8厘米"),
        ("Peak systolic velocity 120 cm/s. A plaque of 3 mm.", "3 mm"),
        ("收缩期峰值流速120cm/s，斑块厚约3mm。", "3mm"),
        ("Valve area 1.5 cm2, gradient 30 mmHg, pressure 12 mm Hg.", None),
        ("流速约80cm每秒。", None),
        ("Plaques of 3-5 mm.", None),  # a range; its end alone would be wrong
        ("No focal lesion.", None),
    ],
)
def test_a_size_is_taken_whole_or_not_at_all(findings: str, size: str | None) -> None:
    assert extracted_size(Report(findings, "")) == size


@pytest.mark.parametrize(
    ("language", "findings", "answer"),
    [
        ("en", "A stone of 8.5 mm with posterior shadowing.", "Yes"),
        ("en", "No flow is seen. It casts a shadow.", "Yes"),
        ("en", "A nodule without posterior acoustic shadowing.", "No"),
        ("en", "There is no stone, mass or collection. No clear shadow is seen.", "No"),
        ("en", "Shadowing is not seen.", "No"),
        ("en", "The liver is smooth.", "No"),
        ("en", "No flow in it but distal shadowing.", None),
        ("en", "The nodule is not associated with shadowing.", None),
        ("zh", "无回声灶内见强回声团，后方伴声影。", "有"),
        ("zh", "血流不丰富，其后方可见声影。", "有"),
        ("zh", "强回声斑，后方无明显声影。", "未"),
        ("zh", "结节后方不伴声影。", "未"),
        ("zh", "后方无明显回声增强及声影。", None),
    ],
)
def test_shadowing_that_the_report_denies_is_never_answered_with_yes(
    language: Language, findings: str, answer: str | None
) -> None:
    one = study(findings, "kidney", language, Report(findings, ""))
    turns = conversations(one, vqa_per_study=ALL, seed=7)
    answers = {turn.prompt: turn.answer for turn in turns}
    found = answers.get(SHADOW_QUESTIONS[language][0])
    assert found is None if answer is None else found is not None and found.startswith(answer)


def test_imported_turns_stand_beside_what_the_report_gives_and_alone_without_one() -> None:
    turn = Turn("vqa", "Is it a cyst?", "Yes.")
    report = Report("A cyst of 12 mm.", "Cyst.")
    both = study("turns", "liver", "en", report)
    alone = replace(both, report=None)
    asked = [
        [
            (one.task, one.answer)
            for one in conversations(replace(one, turns=(turn,)), vqa_per_study=0, seed=0)
        ]
        for one in (both, alone)
    ]
    assert asked == [[("vqa", "Yes."), ("report", report.text), ("diagnosis", "Cyst.")], [("vqa", "Yes.")]]
