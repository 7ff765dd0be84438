"""Report text: what identifies goes, what is clinical stays word for word."""

from __future__ import annotations

import datetime
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.header import identifiers
from echoray.data.deidentify.text import known_pattern, redact_text
from echoray.data.deidentify.text_rules import load_text_rules
from echoray.data.phantom.anatomy import KINDS, build_anatomy
from echoray.data.phantom.dicom import image_dataset, report_dataset
from echoray.data.phantom.identity import Identity, draw_patient, draw_visit
from echoray.data.phantom.report import compose_report
from echoray.data.phantom.study import PhantomStudy, Truth
from echoray.types import SYSTEMS, Frame, Language, Rejection, Report, Study, System

RULES = load_text_rules()
NO_PIXELS = Frame(np.zeros((8, 8, 3), np.uint8))


def truth_of(system: System, kind: str, language: Language, seed: int) -> Truth:
    """The truth of a study without pictures, from the parts that write the corpus."""
    rng = np.random.default_rng(seed)
    anatomy = build_anatomy(system, kind, rng)
    patient = draw_patient(rng, language, female=False)
    identity = Identity(patient, draw_visit(rng, language, patient))
    report, clean = compose_report(anatomy, identity, language, rng)
    return Truth(seed, system, language, kind, anatomy.findings, report, clean, identity, (), ())


def header_strings(truth: Truth) -> tuple[str, ...]:
    study = PhantomStudy(0, (NO_PIXELS,), truth)
    return identifiers(report_dataset(study, [image_dataset(study, 0)]))


def redact(text: str, known: tuple[str, ...] = ()) -> str:
    return redact_text(text, identifiers=known, rules=RULES).text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("with_header", [True, False], ids=["header", "rules only"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_redacting_a_report_gives_its_clean_twin(
    system: System, with_header: bool, language: Language
) -> None:
    for kind in KINDS[system]:
        for seed in range(12):
            truth = truth_of(system, kind, language, seed)
            known = header_strings(truth) if with_header else ()
            for part in ("findings", "impression"):
                dirty, clean = getattr(truth.report, part), getattr(truth.clean_report, part)
                # Operators' initials that are clinical words stay, so nothing of the clean text may go.
                assert redact(dirty, known) == clean, (kind, seed)
                assert redact(clean, known) == clean
            left = redact(truth.report.text, known)
            assert not [text for text in truth.patient.strings() if len(text) > 2 and text in left]


GONE = [
    ("Dr Grace Okafor measured a cyst of 12.5 mm in the liver.", "measured a cyst of 12.5 mm in the liver."),
    ("Reported by Dr J. Okafor. The liver is normal.", "The liver is normal."),
    ("Seen with Mr. Smith-Jones and Mrs. Ó Brien. No cyst.", "No cyst."),
    ("Patient: John Smith\nMRN: 99\nThe liver is normal.\nNo cyst.", "The liver is normal.\nNo cyst."),
    ("Patient John Smith has a normal liver.", "has a normal liver."),
    ("The 12.5 mm cyst, seen by Dr Okafor in March 2021, is unchanged.", "The 12.5 mm cyst, is unchanged."),
    ("Cyst (ID 12345, born 1969-12-08) of 8 mm.", "Cyst of 8 mm."),
    ("Seen at Alderbrook General Hospital with a nodule of 8 mm.", "Seen at with a nodule of 8 mm."),
    ("A nodule of 8 mm; call +44 20 7946 0958.", "A nodule of 8 mm."),
    ("A nodule of 8 mm; mobile (0151) 496-0123.", "A nodule of 8 mm."),
    ("Images sent to grace.okafor@example.org. Normal flow.", "Normal flow."),
    ("Nodule, male, 54 years old, seen at 09:30, of 8 mm.", "Nodule, of 8 mm."),
    ("检查于2024-08-09进行，肝实质回声均匀。", "肝实质回声均匀。"),
    ("王建国医师测得肝囊肿大小约12.5mm。", "测得肝囊肿大小约12.5mm。"),
    ("检查医师：王建国，肝实质回声均匀。", "肝实质回声均匀。"),
    ("患者手机13912345678，肝脏回声正常。", "肝脏回声正常。"),
    (
        "患者张小红（病历号A123456）于云岚市第一人民医院行肝脏检查，见囊肿大小约12.5mm。",
        "行肝脏检查，见囊肿大小约12.5mm。",
    ),
    ("姓名：张小红，性别：女，年龄：54岁。肝脏正常。", "肝脏正常。"),
    ("2024年8月9日复查，结节大小约8.0mm。", "结节大小约8.0mm。"),
]


@pytest.mark.parametrize(("text", "want"), GONE)
def test_without_a_header_the_rules_take_whole_names_numbers_and_dates(text: str, want: str) -> None:
    assert redact(text) == want


CLINICAL = [
    "The mitral and tricuspid leaflets are thin and mobile.",
    "The patient has normal kidneys.",
    "MR imaging or CT of the mass is suggested.",
    "Peak velocity 1.25 m/s, resistive index 0.71, 65 bpm, EF 64%.",
    "A 12.5 x 10.5 mm nodule, TI-RADS 4. Follow-up in 6 months.",
    "结节中心可见钙化，大小约12.0×8.5mm，TI-RADS 4类。",
    "中心静脉通畅，左室射血分数64%。",
]


@pytest.mark.parametrize("text", CLINICAL)
def test_clinical_sentences_stay_word_for_word(text: str) -> None:
    assert redact(text) == text


def test_initials_that_are_clinical_words_do_not_turn_a_finding_around() -> None:
    text = "NO FOCAL LESION OF THE RT LOBE; CT IS ADVISED. Normal LV."
    assert redact(text, ("NO", "RT", "CT", "LV")) == text
    assert redact("Read by KJ. Normal flow.", ("KJ",)) == "Normal flow."


def test_what_closes_up_around_a_cut_is_looked_at_again() -> None:
    assert redact("Cyst wall 2024-(KJ)08-09 of 3 mm.", ("KJ",)) == "Cyst wall of 3 mm."


def test_a_name_is_found_in_any_case_and_without_accents_but_not_within_a_word() -> None:
    known = known_pattern(("Müller", "Muller", "Ann"))
    assert known is not None
    for text in ("MÜLLER", "muller", "Müller's", "Ann"):
        assert known.search(text), text
    for text in ("Annular", "Hann"):
        assert not known.search(text), text


DATE_FORMS = (
    "{0:%Y-%m-%d}", "{0:%Y/%m/%d}", "{0:%Y.%m.%d}", "{0:%Y%m%d}", "{0:%d.%m.%Y}", "{0:%m/%d/%Y}",
    "{0:%d/%m/%y}", "{0:%d %B %Y}", "{0:%d-%b-%y}", "{0:%B %d, %Y}", "{0:%b %Y}", "{0:%Y-%m-%d}T10:15",
    "{0.month}/{0.day}/{0.year}", "{0.year}年{0.month}月{0.day}日",
)  # fmt: skip


@given(
    day=st.dates(datetime.date(1930, 1, 1), datetime.date(2035, 12, 31)),
    form=st.sampled_from(DATE_FORMS),
    around=st.sampled_from(
        [("Compared with ", ", the cyst of 12.5 mm is unchanged."), ("与", "比较，囊肿12.5mm。")]
    ),
)
@settings(max_examples=300, deadline=None)
def test_a_date_in_any_notation_goes_and_the_measurement_stays(
    day: datetime.date, form: str, around: tuple[str, str]
) -> None:
    date = form.format(day)
    left = redact(date.join(around))
    assert "12.5" in left
    assert not set(re.findall(r"\d+", left)) - {"12", "5"}, (date, left)


def test_any_order_of_sentences_loses_the_identity_and_keeps_each_measurement() -> None:
    truths = [truth_of("liver", "cyst", language, 5) for language in ("en", "zh")]
    known = tuple(value for truth in truths for value in header_strings(truth))
    person = [text for truth in truths for text in truth.patient.strings() if len(text) > 2]
    clean = ["A cyst of 12.5 mm is seen.", "Normal flow, no mass.", "肝内见囊肿，大小约8.0mm。", "血流正常。"]
    frames = (
        "Seen: {}.",
        "报告：{}。",
        "The cyst ({}) of 3.5 mm.",
        "囊肿（{}）3.5mm。",
        "{}",
        "nodule {} ;",
        "{}\n",
    )

    @given(
        st.lists(
            st.one_of(
                st.sampled_from(clean),
                st.builds(str.format, st.sampled_from(frames), st.sampled_from(person)),
                st.text(alphabet="aZ 09.,;:()（）。，-/年月患者\n", max_size=12),
            ),
            max_size=8,
        )
    )
    @settings(max_examples=300, deadline=None)
    def check(parts: list[str]) -> None:
        # A line each, so that random text cannot swallow the sentence beside it.
        text = "\n".join(parts)
        once = redact(text, known)
        assert redact(once, known) == once
        assert not [value for value in person if value in once]
        assert all(once.count(sentence) >= parts.count(sentence) for sentence in clean)

    check()


def test_a_report_of_identifiers_alone_is_rejected_and_a_good_one_comes_out_without_header_strings() -> None:
    clinical = Report("Patient Ann Lee. The liver is normal.", "No cyst. Signed: Dr Lee.")
    study = Study("h", "p", "liver", "en", (NO_PIXELS,), clinical, "dicom", ("Lee", "Ann"))
    deidentifier = Deidentifier(pixels=False)
    clean = deidentifier.deidentify(study)
    assert isinstance(clean, Study)
    assert clean.report == Report("The liver is normal.", "No cyst.")
    assert clean.identifiers == ()
    empty = Study("h", "p", "liver", "en", (), Report("Patient: Ann Lee", ""), "dicom", ("Lee",))
    assert deidentifier.deidentify(empty) == Rejection("h", "deidentify", "empty_report")
