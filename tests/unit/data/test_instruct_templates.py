"""Exemplars, instructions and guidance: whole, true to their reports, and found where they fit."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from echoray.data.instruct.answers import occurs
from echoray.data.instruct.items import PARTS
from echoray.data.instruct.templates import (
    guidance,
    guidance_questions,
    instructions,
    read_templates,
    template_for,
    templates,
)
from echoray.errors import ConfigError
from echoray.types import SYSTEMS, Language, Report, System

LANGUAGES: tuple[Language, ...] = ("en", "zh")


def text_of(system: str) -> str:
    return files("echoray.data.instruct").joinpath(f"exemplars/{system}.yaml").read_text(encoding="utf-8")


def test_three_templates_of_each_system_with_every_part_in_both_languages() -> None:
    found = [one for system in SYSTEMS for one in templates()[system]]
    assert len({one.id for one in found}) == 21
    for one in found:
        for language in LANGUAGES:
            exemplar = one.exemplar(language)
            assert {example.part for example in exemplar.examples} == set(PARTS) - {"report"}
            closed = [example for example in exemplar.examples if example.form == "closed"]
            assert all(occurs(example.answer, exemplar.report) for example in closed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("answer: 14 x 10 x 9 mm", "answer: 14 x 10 x 90 mm", "thyroid.yaml: 1.en.*does not occur"),
        ("id: thyroid-benign", "id: thyroid-normal", "thyroid-normal"),
        ("part: counseling", "part: advice", "thyroid.yaml: 0.en.examples.4.part"),
        ("  en:\n    findings: Both", "  fr:\n    findings: Both", "thyroid.yaml: 0"),
        ("- id: thyroid-normal", "- id: [thyroid", "not YAML"),
    ],
)
def test_a_defect_is_named_with_file_and_field(old: str, new: str, message: str) -> None:
    text = text_of("thyroid")
    assert old in text
    with pytest.raises(ConfigError, match=message):
        read_templates(text.replace(old, new, 1), "thyroid")


@pytest.mark.parametrize(
    ("system", "language", "impression", "template"),
    [
        (
            "thyroid",
            "en",
            "Suspicious hypoechoic nodule; biopsy is advised.",
            "thyroid-suspicious",
        ),
        ("breast", "zh", "右乳实性结节，考虑纤维腺瘤，BI-RADS 3类。", "breast-benign"),
        ("kidney", "en", "Nephrolithiasis of the left kidney.", "kidney-stone"),
        ("liver", "zh", "肝脏超声未见明显异常。", "liver-normal"),
        ("vessel", "en", "Acute thrombosis of the popliteal vein.", "vessel-thrombosis"),
    ],
)
def test_the_exemplar_that_fits_is_taken(
    system: System, language: Language, impression: str, template: str
) -> None:
    report = Report("", impression)
    assert template_for(system, language, report, np.random.default_rng(0)).id == template


def test_instructions_vary_and_repeat_nothing() -> None:
    for part in ("report", "diagnosis"):
        for language in LANGUAGES:
            wordings = instructions(part, language)
            assert len(set(wordings)) == len(wordings) >= 15


@pytest.mark.parametrize(
    ("system", "language", "text", "expected"),
    [
        ("breast", "en", "Simple cyst in the left breast, BI-RADS 2.", ["birads-2"]),
        ("breast", "en", "Mass of the left breast, BI-RADS 4A.", ["birads-4a"]),
        ("breast", "zh", "左乳肿块，BI-RADS 4b类，建议活检。", ["birads-4b"]),
        ("breast", "zh", "左乳囊肿，BI-RADS 2类。", ["birads-2"]),
        ("thyroid", "en", "Solid nodule, TI-RADS 4; aspiration is suggested.", ["tirads-4"]),
        ("thyroid", "zh", "结节，C-TIRADS 3类。", ["tirads-3"]),
        ("gynecology", "en", "Cyst of the left ovary, O-RADS 2; follow-up.", ["orads-2"]),
        ("kidney", "en", "Stone in the lower pole of the left kidney.", ["kidney-stone"]),
        ("kidney", "en", "There is no hydronephrosis, stone or focal lesion of the kidney.", []),
        ("kidney", "zh", "左肾积水，建议查找梗阻原因。", ["kidney-hydronephrosis"]),
        ("kidney", "zh", "未见肾积水。未见肾结石。", []),
        ("heart", "en", "There is no pericardial effusion.", []),
        ("heart", "zh", "心包积液，建议结合临床。", ["pericardial-effusion"]),
        ("heart", "zh", "无心包积液。", []),
        ("gynecology", "zh", "子宫未见肌瘤。", []),
        (
            "vessel",
            "en",
            "Soft plaque of the artery with about 40% stenosis.",
            ["carotid-plaque"],
        ),
        ("vessel", "zh", "左侧颈总动脉软斑块，狭窄约40%。", ["carotid-plaque"]),
        ("liver", "en", "BI-RADS 2.", []),
    ],
)
def test_guidance_follows_from_what_is_stated_and_not_from_what_is_denied(
    system: System, language: Language, text: str, expected: list[str]
) -> None:
    assert [one.id for one in guidance(system, language, Report("", text))] == expected


def test_every_guided_part_can_be_asked_for() -> None:
    for part in ("risk", "counseling", "surveillance", "treatment"):
        for language in LANGUAGES:
            assert len(set(guidance_questions(part, language))) >= 4  # type: ignore[arg-type]
