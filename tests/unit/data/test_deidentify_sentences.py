"""Labelled sentences: what must go is gone, what must stay is there; texts about nobody stay whole."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from echoray.data.deidentify import Deidentifier
from echoray.data.deidentify.text import redact_text
from echoray.data.deidentify.text_rules import load_text_rules
from echoray.types import Report, Study
from tests.public_text import PUBLIC_TEXT, needs_public_text

RULES = load_text_rules()
STUDY_DATE = datetime.date(2023, 8, 4)
GOLDEN = Path(__file__).parents[2] / "golden" / "deid_text"


def redact(text: str, study_date: datetime.date | None = STUDY_DATE) -> str:
    return redact_text(text, identifiers=(), rules=RULES, study_date=study_date).text


def sentences(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load((GOLDEN / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["en.yaml", "zh.yaml", "dates.yaml"])
def test_everything_that_must_go_is_gone_and_what_must_stay_is_there(
    name: str, record_property: pytest.RecordProperty
) -> None:
    found = [(one, redact(one["text"])) for one in sentences(name)]
    leaked = [(text, part) for one, text in found for part in one["go"] if part in text]
    lost = [(text, part) for one, text in found for part in one["stay"] if part not in text]
    num_go, num_stay = (sum(len(one[side]) for one, _ in found) for side in ("go", "stay"))
    record_property("recall", 1 - len(leaked) / num_go)
    record_property("retention", 1 - len(lost) / num_stay)
    assert not leaked
    assert len(lost) <= 0.02 * num_stay, lost


@pytest.mark.parametrize("name", ["en.yaml", "zh.yaml"])
def test_one_report_of_all_sentences_leaks_no_more_than_each_alone(name: str) -> None:
    found = sentences(name)
    text = redact("\n".join(one["text"] for one in found))
    assert text == "\n".join(part for one in found if (part := redact(one["text"])))
    assert redact(text) == text


@pytest.mark.parametrize("without", [None, datetime.date(1950, 1, 1)], ids=["no date", "far away"])
def test_without_a_study_date_near_by_no_date_and_no_interval_is_left(without: datetime.date | None) -> None:
    # A date without a year is always one before the study.
    with_year = [one for one in sentences("dates.yaml") if re.search(r"\d{4}", one["text"])]
    assert len(with_year) > 35
    for one in with_year:
        text = redact(one["text"], without)
        assert not re.search(r"\b(19|20)\d\d|earlier|later|[月周天年][前后]", text), text


@given(days=st.integers(1, 14_000), zh=st.booleans(), before=st.booleans())
@settings(max_examples=300, deadline=None)
def test_an_interval_is_as_long_as_it_was(days: int, zh: bool, before: bool) -> None:
    date = STUDY_DATE + datetime.timedelta(days=-days if before else days)
    text = redact(f"与{date:%Y-%m-%d}超声比较，囊肿。" if zh else f"Cyst compared with {date:%Y-%m-%d}.")
    told = re.search(r"(\d+)个?(天|周|月|年)(前|后)" if zh else r"(\d+) (\w+?)s? (earlier|later)", text)
    assert told, text
    length = {
        "天": 1,
        "day": 1,
        "周": 7,
        "week": 7,
        "月": 30.44,
        "month": 30.44,
        "年": 365.25,
        "year": 365.25,
    }
    assert abs(int(told[1]) * length[told[2]] - days) <= length[told[2]] / 2 + 1
    assert (told[3] in ("前", "earlier")) == before


def test_a_study_loses_its_date_and_keeps_the_interval() -> None:
    report = Report("Compared with 04.05.2023 the cyst of 9 mm is unchanged.", "Seen on 2023-08-04: cyst.")
    study = Study(
        "h", "p", "liver", "en", (), report, "dicom", ("2023-08-04",), date=datetime.date(2023, 8, 4)
    )
    ambiguous = Deidentifier(pixels=False).deidentify(study)
    assert isinstance(ambiguous, Study) and ambiguous.date is None
    assert ambiguous.report == Report("Compared with the cyst of 9 mm is unchanged.", "Seen on: cyst.")


@needs_public_text
def test_real_conversations_without_patients_stay_whole() -> None:
    records = [one for path in sorted(PUBLIC_TEXT.glob("*.json")) for one in json.loads(path.read_text())]
    texts = [turn["value"] for one in records for turn in one["conversations"]]
    parts = [part for text in texts for part in re.split(r"(?<=[。！？；!?\n])", text) if part.strip()]
    touched = {part for part in set(parts) if RULES.denied(part)}
    assert len(parts) > 10_000
    assert 1000 * sum(part in touched for part in parts) / len(parts) <= 0.5, sorted(touched)[:20]
