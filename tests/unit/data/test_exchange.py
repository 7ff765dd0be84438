"""Conversations survive export, import and conversion; validation names what prepare would reject."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from echoray import artifacts
from echoray.cli.app import app
from echoray.config import RunConfig
from echoray.config.data import PhantomConfig
from echoray.data.clean import study_of
from echoray.data.conversations import (
    DIAGNOSIS_PROMPTS,
    ORGAN_QUESTIONS,
    REPORT_PROMPTS,
    SHADOW_QUESTIONS,
    SIZE_QUESTIONS,
    conversations,
)
from echoray.data.export import export_studies
from echoray.data.phantom import write_corpus
from echoray.data.sources.conversations import read_conversation
from echoray.data.sources.dialogs import FORMS, Dialog, Form, encode, form_of, parse, task_of
from echoray.data.sources.tables import list_tables
from echoray.errors import UsageError
from echoray.storage import open_store, store_of
from echoray.types import SYSTEMS, TASKS, ArtifactRef, Study
from tests.unit.data.test_table_sources import BAD, FINDINGS, LLAVA, run_with, write_picture, write_table

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).map(str.strip)
WORDS = TEXT.filter(lambda text: text and "<" not in text)
NAMES = st.text(string.ascii_letters, min_size=1, max_size=8).map(lambda name: f"images/{name}.png")


@st.composite
def dialogs(draw: st.DrawFn) -> Dialog:
    turns = draw(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
    tasks = draw(st.lists(st.sampled_from(TASKS), min_size=len(turns), max_size=len(turns)))
    fields = {"id": "7", "patient_id": draw(WORDS), "organ_system": draw(st.sampled_from(SYSTEMS))}
    images = draw(st.lists(NAMES, max_size=3))
    return Dialog("7", tuple(images), tuple(turns), draw(st.just("") | WORDS), fields, tuple(tasks))


@settings(max_examples=60, deadline=None)
@given(dialogs(), st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_any_conversation_survives_any_two_formats(dialog: Dialog, first: Form, second: Form) -> None:
    record = json.loads(json.dumps(encode(dialog, first)))
    assert parse(record, first) == (dialog, [])
    other = encode(parse(record)[0], second)
    assert form_of(other) == second and parse(other, second) == (dialog, [])
    assert encode(parse(other)[0], first) == record


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["user", "gpt", "text", "<image>", "a.png", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "role", "value", "content", "type", "image_url", "text"]), inner
        )
    ),
    max_leaves=12,
)
KEYS = [
    "id",
    "image",
    "images",
    "conversations",
    "messages",
    "query",
    "response",
    "history",
    "tasks",
    "language",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_no_record_whatever_ends_the_reading_and_a_usable_one_has_turns(record: dict[str, Any]) -> None:
    dialog, defects = parse(record)
    assert any(one.fatal for one in defects) or all(text for turn in dialog.turns for text in turn)
    assert defects or dialog.turns


def test_every_question_of_our_own_has_its_task() -> None:
    for language in ("en", "zh"):
        vqa = [ORGAN_QUESTIONS[language][0], SIZE_QUESTIONS[language], SHADOW_QUESTIONS[language][0]]
        assert {task_of(one) for one in REPORT_PROMPTS[language]} == {"report"}
        assert {task_of(one) for one in DIAGNOSIS_PROMPTS[language]} == {"diagnosis"}
        assert {task_of(one) for one in vqa} == {"vqa"}


def png(seed: int) -> bytes:
    target = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, ArtifactRef, list[dict[str, Any]]]:
    """Clean studies: one of a report, one of imported turns, one of both; two of one patient."""
    run = run_with().merged({"workspace": str(tmp_path_factory.mktemp("workspace"))})
    turns = [{"task": "vqa", "prompt": "囊肿有多大？\n请回答", "answer": 'It is "12 mm" — <b>large</b>.'}]
    rows = [
        {
            "study_hash": f"{number}" * 64,
            "patient_key": ("a" if number < 2 else "b") * 64,
            "system": "liver",
            "language": "zh" if number else "en",
            "findings": "" if number == 1 else "A cyst of 12 mm.\nNo shadow.",
            "impression": "" if number == 1 else "Benign cyst.",
            "turns": json.dumps(turns if number else []),
            "images": [png(number), png(9)],
            "split": "train" if number < 2 else "test",
            "source": "dicom",
        }
        for number in range(3)
    ]

    def build(folder: Path) -> dict[str, int]:
        for number in range(2):  # two parts
            part = pa.Table.from_pylist(rows[2 * number : 2 * number + 2])
            pq.write_table(part, folder / f"part-{number:05d}.parquet")
        return {"studies": len(rows)}

    ref = artifacts.plan("studies", run.name, config={})
    artifacts.produce(store_of(run), ref, build, config={})
    return run, ref, rows


def silent(step: str, done: int, total: int | None) -> None:
    return None


def imported(path: Path) -> list[Study]:
    (listing,) = list_tables(run_with(conversation_uris=[str(path)]))
    found = [read_conversation(one, key=b"key", language="en", max_frames=8) for one in listing.studies]
    assert not [rejection for _, rejections in found for rejection in rejections]
    return [study for study, _ in found if study is not None]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_is_imported_with_the_same_turns_pictures_and_patients(
    made: tuple[RunConfig, ArtifactRef, list[dict[str, Any]]], form: Form, tmp_path: Path
) -> None:
    run, ref, rows = made
    report = export_studies(run, ref, open_store(str(tmp_path)), form, None, silent)
    assert (report.num_conversations, report.num_images) == (3, 4)  # the shared picture is one file
    found = imported(tmp_path / report.file)
    for row, study in zip(rows, found, strict=True):
        examples = conversations(study_of(row), vqa_per_study=run.data.vqa_per_study, seed=run.seed)
        expected = [(one.task, one.prompt, one.answer) for one in examples]
        assert [(one.task, one.prompt, one.answer) for one in study.turns] == expected
        assert (study.system, study.language) == (row["system"], row["language"])
        for frame, content in zip(study.frames, row["images"], strict=True):
            assert np.array_equal(frame.pixels, np.asarray(Image.open(io.BytesIO(content))))
    assert found[0].patient_key == found[1].patient_key != found[2].patient_key
    clean = CliRunner().invoke(app, ["data", "validate", str(tmp_path), "--format", form])
    assert clean.exit_code == 0 and "3 records, 0 defects" in clean.output, clean.output


def test_an_export_is_reproducible_by_split_and_overwrites_nothing_else(
    made: tuple[RunConfig, ArtifactRef, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run, ref, _ = made
    report = export_studies(run, ref, open_store(str(tmp_path / "a")), "swift", "train", silent)
    assert report.file == "train.jsonl" and report.num_conversations == 2
    content = {path.name: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    for folder in ("a", "b"):  # onto itself, and elsewhere
        export_studies(run, ref, open_store(str(tmp_path / folder)), "swift", "train", silent)
        again = {path.name: path.read_bytes() for path in (tmp_path / folder).rglob("*") if path.is_file()}
        assert again == content
    (tmp_path / "b" / "train.jsonl").write_text("another's")
    with pytest.raises(UsageError, match="another file is there"):
        export_studies(run, ref, open_store(str(tmp_path / "b")), "swift", "train", silent)
    with pytest.raises(UsageError, match="no clean study is in validation"):
        export_studies(run, ref, open_store(str(tmp_path / "c")), "llava", "validation", silent)
    assert not (tmp_path / "c").exists()


def validated(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["data", "validate", *arguments, "--json"])
    return done.exit_code, json.loads(done.output)


def places(found: dict[str, Any]) -> set[tuple[str, int | None, str, str]]:
    return {(one["file"], one["row"], one["field"], one["code"]) for one in found["found"]}


def test_validation_names_rows_and_fields_of_a_table_and_quotes_nothing(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    good = {"study_id": "S-1", "patient_id": "P-1", "images": "1.png", "findings": FINDINGS,
            "patient_name": "Blackwood^Ada"}  # fmt: skip
    write_table(
        tmp_path,
        [
            good,
            {**good, "images": "1.png;missing-Blackwood.png"},
            {**good, "study_id": "S-3", "patient_id": "", "patient_name": "", "system": "spleen"},
            {**good, "study_id": "S-4", "images": "broken.png"},
            {**good, "study_id": "S-5", "findings": ""},
        ],
    )
    code, found = validated(str(tmp_path))
    assert (code, found["records"], found["defective"]) == (1, 5, 4)
    assert places(found) == {
        ("studies.csv", 3, "study_id", "duplicate_id"),
        ("studies.csv", 3, "images", "missing_image"),
        ("studies.csv", 4, "system", "unknown_system"),
        ("studies.csv", 4, "patient_id", "no_patient"),
        ("studies.csv", 5, "", "unreadable_image"),
        ("studies.csv", 6, "", "no_report"),
    }
    shown = CliRunner().invoke(app, ["data", "validate", str(tmp_path / "studies.csv")])
    assert shown.exit_code == 1 and "5 records, 6 defects in 4 of them" in shown.output
    for output in (shown.output, json.dumps(found)):
        assert not [word for word in ("Blackwood", "P-1", "S-3", "spleen", "smooth") if word in output]
    write_table(tmp_path, [good])
    assert validated(str(tmp_path)) == (0, {"records": 1, "defective": 0, "defects": 0, "found": []})
    (tmp_path / "studies.csv").write_text("study_id,patient_id,image,findings,ward\nS-1,P-1,1.png,liver,7\n")
    code, found = validated(str(tmp_path))
    assert (code, found["records"], found["defective"], found["defects"]) == (1, 1, 0, 1)
    (tmp_path / "studies.csv").write_text("study_id,image,findings,ward\nS-1,1.png,liver,7\n")
    code, found = validated(str(tmp_path))
    expected = {
        ("studies.csv", 1, "patient_id", "missing_column"),
        ("studies.csv", 1, "ward", "unknown_column"),
    }
    assert code == 1 and places(found) == expected


def test_validation_of_conversations_tells_every_defect_of_every_line(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    write_picture(tmp_path / "b.png", 2)
    lines = [
        json.dumps(one) for one in (LLAVA, *({**bad, "id": str(n)} for n, (bad, _, _) in enumerate(BAD, 2)))
    ]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    code, found = validated(str(tmp_path / "talk.jsonl"))
    assert (code, found["records"]) == (1, len(BAD) + 1)
    wanted = {(row, bad[2], bad[1]) for row, bad in enumerate(BAD[:-1], 2)}  # the last one has an id here
    assert wanted <= {(row, field, code) for _, row, field, code in places(found)}
    (tmp_path / "talk.jsonl").write_text(f"{lines[0]}\n")
    assert validated(str(tmp_path / "talk.jsonl"), "--format", "llava")[0] == 0
    assert places(validated(str(tmp_path / "talk.jsonl"), "--format", "swift")[1]) == {
        ("talk.jsonl", 1, "", "wrong_format")
    }
    (tmp_path / "bad.json").write_text('[{"id": 1},\n {"id": }]')
    code, found = validated(str(tmp_path / "bad.json"))
    assert found["found"][0]["detail"] == "line 2 column 9"
    assert CliRunner().invoke(app, ["data", "validate", str(tmp_path / "none.json")]).exception is not None


def test_validation_of_dicom_names_files_and_attributes(tmp_path: Path) -> None:
    phantom = PhantomConfig(num_studies=4, width=320, height=240, multi_region_rate=0, no_report_rate=0,
                            corrupt_rate=0)  # fmt: skip
    write_corpus(tmp_path, phantom, seed=7, language="en")
    assert validated(str(tmp_path))[0] == 0
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    files = [sorted(folder.glob("*.dcm")) for folder in folders]
    reports = [next(one for one in group if pydicom.dcmread(one).Modality == "SR") for group in files]
    images = [next(one for one in group if one not in reports) for group in files]
    reports[0].unlink()
    (folders[0] / "notes.dcm").write_text("no DICOM")
    for path, change in ((images[1], {"Modality": "CT"}), (images[2], {"PatientID": "another"})):
        dataset = pydicom.dcmread(path)
        for name, value in change.items():
            setattr(dataset, name, value)
        dataset.save_as(path)
    dataset = pydicom.dcmread(images[3])
    del dataset.PixelData
    dataset.save_as(images[3])
    code, found = validated(str(tmp_path))
    told = {(one["file"], one["code"]): one["field"] for one in found["found"]}
    relative = [str(one.relative_to(tmp_path)) for one in images]
    assert code == 1
    assert told[relative[0], "no_report"] == "" and (f"{folders[0].name}/notes.dcm", "not_dicom") in told
    assert told[relative[1], "not_ultrasound"] == "Modality (0008,0060)"
    assert told[relative[2], "patient_conflict"] == "PatientID (0010,0020)"
    assert told[relative[3], "unreadable_pixels"] == "PixelData (7FE0,0010)"
