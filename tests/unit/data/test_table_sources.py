"""Folders, tables and conversation files become studies; what is wrong is named, counted and never quoted."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echoray.config import DataConfig, RunConfig, load_run
from echoray.data.deidentify import Deidentifier
from echoray.data.ledger import ledger_row
from echoray.data.prepare import PrepareStudies
from echoray.data.sources.conversations import CONVERSATIONS, list_conversations, read_conversation
from echoray.data.sources.image_report import IMAGE_REPORT, list_image_reports, read_image_report, sections
from echoray.data.sources.images import decode_image
from echoray.data.sources.index import StudyFiles
from echoray.data.sources.listed import Listed
from echoray.data.sources.tables import list_tables, place_of
from echoray.errors import InputDataError
from echoray.storage import open_store
from echoray.types import Rejection, Study, Turn
from tests.public_text import PUBLIC_TEXT, needs_public_text

FINDINGS = "The liver is smooth. Ada Blackwood was examined by J. Stone."
LLAVA = {
    "id": "1",
    "image": ["a.png", "b.png"],
    "patient_id": "P-77123",
    "conversations": [
        {"from": "system", "value": "You are a sonographer."},
        {"from": "human", "value": "<image>\n<image>\nDescribe the liver."},
        {"from": "gpt", "value": "The liver is smooth, its echo texture homogeneous."},
        {"from": "human", "value": "What is the diagnosis?"},
        {"from": "gpt", "value": "Normal liver."},
    ],
}
TURNS = (
    Turn("report", "Describe the liver.", "The liver is smooth, its echo texture homogeneous."),
    Turn("diagnosis", "What is the diagnosis?", "Normal liver."),
)


def picture(seed: int) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(0, 256, (6, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    return grey[..., None].repeat(3, -1)


def write_picture(path: Path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).convert(mode).save(path)


def run_with(**source: Any) -> RunConfig:
    data = {"source": {"phantom": None, "package_samples": False, **source}, "image_size_px": 56}
    deidentify = {"key_ref": "env:KEY", "pixels": False, "pixels_cleaned_elsewhere": True}
    return load_run("tiny").merged({"data": {**data, "deidentify": deidentify}})


def read(one: Listed) -> tuple[Study | None, list[Rejection]]:
    assert one.study is not None
    reader = read_conversation if one.study.kind == CONVERSATIONS else read_image_report
    return reader(one.study, key=b"key", language="en", max_frames=4)


def prepared(config: DataConfig, studies: list[StudyFiles]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Clean rows and the reasons of what was rejected; every ledger row reconciles."""
    worker, rows, rejections, counts = PrepareStudies(config, b"key", seed=3), [], [], Counter[str]()
    for study in studies:
        row, record = worker.prepare(study)
        rows += [] if row is None else [row]
        rejections += record.rejections
        counts.update(record.counts)
    for step in ("read", "frames", "deidentify", "studies"):
        ledger_row(step, counts[f"{step}_in"], counts[f"{step}_out"], rejections)
    assert counts["read_in"] == len(studies)
    return rows, Counter(f"{one.step}: {one.reason}" for one in rejections)


def write_table(folder: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> None:
    target = io.StringIO()
    columns = [
        "study_id",
        "patient_id",
        "images",
        "findings",
        "impression",
        "patient_name",
        "system",
        "language",
    ]
    writer = csv.DictWriter(target, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "studies.csv").write_bytes(target.getvalue().encode(encoding))


def test_a_table_gives_clean_rows_and_every_bad_one_a_reason(tmp_path: Path) -> None:
    write_picture(tmp_path / "p" / "1.png", 1)
    write_picture(tmp_path / "p" / "2.jpg", 2)
    (tmp_path / "p" / "broken.png").write_bytes((tmp_path / "p" / "1.png").read_bytes()[:300])
    good = {"study_id": "S-0001", "patient_id": "P-1", "images": "p/1.png; p/2.jpg", "findings": FINDINGS,
            "impression": "Normal liver.", "patient_name": "Blackwood^Ada"}  # fmt: skip
    bad = [
        good,
        {**good, "study_id": ""},
        {**good, "study_id": "S-3", "images": "p/9.png"},
        {**good, "study_id": "S-4", "images": "../other.png"},
        {**good, "study_id": "S-5", "images": "https://host/a.png"},
        {**good, "study_id": "S-11", "images": "p/1.png;studies.csv"},
        {**good, "study_id": "S-6", "system": "spleen"},
        {**good, "study_id": "S-7", "images": "p/1.png;p/broken.png"},
        {**good, "study_id": "S-8", "images": ""},
        {**good, "study_id": "S-9", "findings": "", "impression": ""},
        {**good, "study_id": "S-10", "findings": "Smooth.", "impression": ""},
    ]
    write_table(tmp_path, [good, *bad])
    run = run_with(image_report_uris=[str(tmp_path)])
    (listing,) = list_tables(run)
    rows, reasons = prepared(run.data, list(listing.studies))
    assert reasons == {
        "read: duplicate_id": 1, "read: no_id": 1, "read: missing_image": 1, "read: image_outside": 1,
        "read: remote_url": 1, "read: not_image": 1,
        "read: unknown_system": 1, "read: unreadable_image": 1, "studies: no_image": 1,
        "studies: no_report": 1, "studies: unknown_system": 1,
    }  # fmt: skip
    (row,) = rows
    assert (row["system"], row["impression"], len(row["images"])) == ("liver", "Normal liver.", 2)
    assert row["findings"].startswith("The liver is smooth.") and "Blackwood" not in row["findings"]
    # The plan changes with the table's content and with a picture's, and with nothing else.
    assert list_tables(run)[0].digest == listing.digest
    write_table(tmp_path, [{**good, "impression": "Normal liver!"}, *bad])
    assert list_tables(run)[0].digest != listing.digest


def test_the_studys_date_is_read_and_its_clinical_dates_become_intervals(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 1)
    write_picture(tmp_path / "b.png", 2)
    report = {"findings": "Compared with 2023-05-04 the cyst is unchanged.", "study_date": "2023-08-04"}
    (tmp_path / "report.json").write_text(json.dumps(report))
    answer = "The liver is smooth. Biopsy 2023-07-21 showed a benign lesion."
    talk = {**LLAVA, "study_date": "2023/8/4"}
    talk["conversations"] = [*LLAVA["conversations"][:2], {"from": "gpt", "value": answer}]
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "llava.json").write_text(json.dumps([talk]))
    told = []
    for kind in ("image_report_uris", "conversation_uris"):
        folder = tmp_path / "talks" if kind == "conversation_uris" else tmp_path
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes((tmp_path / name).read_bytes())
        (listing,) = list_tables(run_with(**{kind: (str(folder),)}))
        (files,) = listing.studies[:1]
        reader = read_conversation if files.kind == CONVERSATIONS else read_image_report
        study, _ = reader(files, key=b"key", language="en", max_frames=4)
        clean = None if study is None else Deidentifier(pixels=False).deidentify(study)
        assert isinstance(clean, Study) and clean.date is None
        told.append(clean.report.findings if clean.report else clean.turns[0].answer)
    assert told == [
        "Compared with 3 months earlier the cyst is unchanged.",
        "The liver is smooth. Biopsy 2 weeks earlier showed a benign lesion.",
    ]


def test_one_patient_of_two_sources_has_one_key_and_one_row_is_one_study(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    row = {"patient_id": "P-77123", "images": "1.png", "findings": "Smooth liver."}
    write_table(tmp_path, [{**row, "study_id": "A"}, {**row, "study_id": "B"}])
    write_picture(tmp_path / "talk" / "a.png", 1)
    write_picture(tmp_path / "talk" / "b.png", 2)
    (tmp_path / "talk" / "train.json").write_text(json.dumps([LLAVA]))
    run = run_with(
        image_report_uris=[str(tmp_path)], conversation_uris=[str(tmp_path / "talk" / "train.json")]
    )
    rows, reasons = prepared(run.data, [study for one in list_tables(run) for study in one.studies])
    assert not reasons and len({one["study_hash"] for one in rows}) == 3
    assert len({one["patient_key"] for one in rows}) == len({one["split"] for one in rows}) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_chinese_tables_are_read_in_the_encodings_of_hospitals(tmp_path: Path, encoding: str) -> None:
    write_picture(tmp_path / "1.png", 1)
    columns = "检查编号,患者编号,图像,超声所见,超声提示,姓名,language"
    text = f"{columns}\n甲1,P1,1.png,肝脏形态正常，欧阳明月。,肝脏未见异常,欧阳明月,zh\n"
    (tmp_path / "studies.csv").write_bytes(text.encode(encoding))
    run = run_with(image_report_uris=[str(tmp_path)])
    rows, reasons = prepared(run.data, list(list_tables(run)[0].studies))
    assert not reasons
    assert (rows[0]["system"], rows[0]["language"], rows[0]["impression"]) == ("liver", "zh", "肝脏未见异常")
    assert "肝脏形态正常" in rows[0]["findings"] and "欧阳" not in rows[0]["findings"]


def test_one_undecodable_row_of_a_table_takes_no_other_with_it(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    lines = ["study_id,patient_id,image,findings", *(f"S-{n},P{n},1.png,肝脏正常" for n in range(3))]
    content = "\n".join(lines).encode().replace("S-1,P1,1.png,肝脏".encode(), b"S-1,P1,1.png,\xff\xfe\x80")
    (tmp_path / "studies.csv").write_bytes(content)
    run = run_with(image_report_uris=[str(tmp_path)])
    rows, reasons = prepared(run.data, list(list_tables(run)[0].studies))
    assert reasons == {"read: not_utf8": 1} and [row["findings"] for row in rows] == ["肝脏正常"] * 2


def test_quotes_that_do_not_match_cost_their_line_and_running_numbers_no_measurement(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 1)
    lines = [f'S-{n},12,1.png,"A liver cyst of 12 mm."' for n in range(3)]
    lines[1] = 'S-1,12,1.png,"A cyst" of 12 mm."'
    (tmp_path / "studies.csv").write_text("\n".join(["study_id,patient_id,image,findings", *lines, "S-4,12"]))
    run = run_with(image_report_uris=[str(tmp_path)])
    rows, reasons = prepared(run.data, list(list_tables(run)[0].studies))
    assert reasons == {"read: bad_csv": 2}
    assert [row["findings"] for row in rows] == ["A liver cyst of 12 mm."] * 2


def test_a_folder_with_a_name_in_another_encoding_is_read(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), "张三".encode("gbk"))  # noqa: PTH118 (bytes)
    write_picture(tmp_path / "new" / "1.png", 1)
    (tmp_path / "new" / "report.txt").write_text("The liver is smooth.")
    os.rename(tmp_path / "new", folder)  # noqa: PTH104
    run = run_with(image_report_uris=[str(tmp_path)])
    rows, reasons = prepared(run.data, list(list_tables(run)[0].studies))
    assert not reasons and len(rows) == 1


def test_a_table_without_a_column_and_a_source_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="without records"):
        list_tables(run_with(image_report_uris=[str(tmp_path)]))
    (tmp_path / "studies.csv").write_text("study_id,images,findings\nS-1,1.png,liver\n")
    with pytest.raises(InputDataError, match="no column patient_id"):
        list_tables(run_with(image_report_uris=[str(tmp_path)]))


def test_a_folder_is_a_study_with_its_report_and_all_images_below_it(tmp_path: Path) -> None:
    write_picture(tmp_path / "one" / "series-1" / "1.png", 1)
    write_picture(tmp_path / "one" / "series-2" / "1.jpeg", 2)
    (tmp_path / "one" / "report.txt").write_bytes(
        "超声所见：\n肝脏大小正常。\n超声提示：肝脏未见异常".encode("gb18030")
    )
    write_picture(tmp_path / "two" / "1.png", 3)
    (tmp_path / "two" / "report.json").write_text(json.dumps({"findings": "Smooth.", "system": "liver"}))
    write_picture(tmp_path / "alone" / "1.png", 4)
    write_picture(tmp_path / "bad" / "1.png", 5)
    (tmp_path / "bad" / "report.json").write_text('{"findings": ')
    (tmp_path / "text" / "report.txt").parent.mkdir()
    (tmp_path / "text" / "report.txt").write_text("Findings: smooth liver")
    run = run_with(image_report_uris=[str(tmp_path)])
    rows, reasons = prepared(run.data, list(list_tables(run)[0].studies))
    assert reasons == {"read: bad_json": 1, "studies: no_report": 1, "studies: no_image": 1}
    found = {(row["findings"], row["impression"], len(row["images"]), row["system"]) for row in rows}
    assert found == {("肝脏大小正常。", "肝脏未见异常", 2, "liver"), ("Smooth.", "", 1, "liver")}
    (broken,) = [one for one in list_image_reports(place_of(open_store(str(tmp_path)), IMAGE_REPORT, 0))
                 if one.file == "bad"]  # fmt: skip
    assert read(broken)[1][0].detail == "report.json: line 1 column 14"


def test_sections_go_by_headings_at_a_lines_beginning() -> None:
    text = "Intro.\nFINDINGS:\nA cyst. Impression: kept.\n\nImpression\nBenign."
    assert sections(text) == {"findings": "Intro.\nA cyst. Impression: kept.", "impression": "Benign."}
    assert sections("A cyst.") == {"findings": "A cyst.", "impression": ""}


def variants() -> dict[str, dict[str, Any]]:
    """The same conversation as LLaVA, swift (new and old) and OpenAI write it."""
    said = [one["value"] for one in LLAVA["conversations"]]  # type: ignore[attr-defined]
    roles = ("system", "user", "assistant", "user", "assistant")
    shown = [{"type": "image_url", "image_url": {"url": f"{name}.png"}} for name in "ab"]
    parts = [*shown, {"type": "text", "text": "Describe the liver."}]
    images = {"images": ["a.png", "b.png"], "patient_id": "P-77123"}
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    old = {"system": said[0], "history": [said[1:3]], "query": said[3], "response": said[4]}
    return {
        "llava": LLAVA,
        "swift": {"messages": messages, **images},
        "swift-old": {**old, **images},
        "openai": {"messages": [messages[0], {"role": "user", "content": parts}, *messages[2:]],
                   "patient_id": "P-77123"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llava", "swift", "swift-old", "openai"])
def test_each_format_gives_the_same_study(tmp_path: Path, name: str) -> None:
    write_picture(tmp_path / "a.png", 1)
    write_picture(tmp_path / "b.png", 2)
    (tmp_path / "talk.jsonl").write_text("\n" + json.dumps(variants()[name]) + "\n")
    (one,) = list_conversations(place_of(open_store(str(tmp_path)), CONVERSATIONS, 0))
    study, rejections = read(one)
    assert study is not None and not rejections and one.row == 2 and one.defects == ()
    assert (study.turns, study.system, study.report) == (TURNS, "liver", None)
    assert [frame.pixels.tolist() for frame in study.frames] == [picture(n).tolist() for n in (1, 2)]
    assert "P-77123" in study.identifiers and "P-77123" not in json.dumps(asdict(study)["patient_key"])


def changed(**values: Any) -> dict[str, Any]:
    return {**LLAVA, **values}


def said(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return changed(conversations=[{"from": role, "value": value} for role, value in pairs])


ASKED = ("human", "<image><image>Describe it.")
INLINE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
PARTS = {
    "messages": [
        {"role": "user", "content": [INLINE, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
}
BAD = [
    (said(ASKED, ("human", "x")), "role_order", "conversations[1].value"),
    (said(("gpt", "x"), ASKED), "role_order", "conversations[0].value"),
    (said(ASKED), "role_order", "conversations[0].value"),
    (said(), "role_order", ""),
    (said(("narrator", "x")), "unknown_role", "conversations[0].from"),
    (said(ASKED, ("gpt", " ")), "empty_answer", "conversations[1].value"),
    (said(ASKED, ("gpt", None)), "empty_answer", "conversations[1].value"),
    (said(ASKED, ("gpt", 7)), "bad_type", "conversations[1].value"),
    (said(("human", "<image>\n<image>"), ("gpt", "x")), "empty_question", "conversations[0].value"),
    (said(("human", "<image>Describe."), ("gpt", "x")), "image_count", "conversations[0].value"),
    (
        said(("human", "<image><image>a <|image_pad|>"), ("gpt", "x")),
        "reserved_token",
        "conversations[0].value",
    ),
    (changed(image=["a.png", "c.png"]), "missing_image", "images"),
    (changed(image=["a.png", "/etc/passwd"]), "image_outside", "images"),
    (changed(image=["a.png", "http://host/b.png"]), "remote_url", "images"),
    (changed(image=["a.png", 3]), "bad_type", "image[1]"),
    (changed(video="cine.mp4"), "video", "video"),
    (changed(organ_system="spleen"), "unknown_system", "organ_system"),
    (changed(language="fr"), "unknown_language", "language"),
    (changed(tasks=["report"]), "bad_task", "tasks"),
    (PARTS, "inline_image", "images"),
    ({"text": "x"}, "unknown_format", ""),
    (changed(note="\ud800"), "not_utf8", ""),
    (LLAVA, "duplicate_id", "id"),
]


def test_every_defect_of_a_conversation_is_named_with_its_line_and_field_and_quarantined(
    tmp_path: Path,
) -> None:
    write_picture(tmp_path / "a.png", 1)
    write_picture(tmp_path / "b.png", 2)
    records = [
        LLAVA,
        *({**one, "id": str(n)} if n < len(BAD) + 1 else one for n, (one, _, _) in enumerate(BAD, 2)),
    ]
    lines = [json.dumps(one).encode() for one in records] + [b'{"id": 5,', b'{"id": "\xff"}', b"[1]"]
    (tmp_path / "talk.jsonl").write_bytes(b"\n".join(lines))
    run = run_with(conversation_uris=[str(tmp_path / "talk.jsonl")])
    place = place_of(open_store(str(tmp_path)), CONVERSATIONS, 0)
    listed = list(list_conversations(place, "talk.jsonl"))
    wanted = [*BAD, (None, "bad_json", ""), (None, "not_utf8", ""), (None, "unknown_format", "")]
    assert listed[0].defects == ()
    for row, (one, (_, code, field)) in enumerate(zip(listed[1:], wanted, strict=True), start=2):
        assert one.row == row
        assert (code, field) in {(defect.code, defect.field) for defect in one.defects}, (code, one.defects)
    assert listed[-3].defects[0].detail == f"line {len(BAD) + 2} column 10"
    studies = list(list_tables(run)[0].studies)
    assert len({one.identity for one in studies}) == len(studies) == len(wanted) + 1
    rows, reasons = prepared(run.data, studies)
    assert len(rows) == 1 and sum(reasons.values()) == len(wanted)
    for one in listed:  # neither a defect nor what the workers get of a rejected record quotes it
        told = json.dumps([asdict(defect) for defect in one.defects])
        assert "passwd" not in told and "host" not in told and "spleen" not in told


def test_records_that_show_one_image_are_of_one_patient(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_picture(tmp_path / f"{name}.png", seed)
    base = {key: value for key, value in LLAVA.items() if key not in ("patient_id", "image")}
    one = said(("human", "<image>Describe the liver."), ("gpt", "Smooth."))["conversations"]
    records = [{**base, "id": str(n), "image": image, "conversations": one} for n, image in enumerate("aab")]
    (tmp_path / "t.json").write_text(json.dumps([{**one, "image": f"{one['image']}.png"} for one in records]))
    studies = [
        read(one)[0] for one in list_conversations(place_of(open_store(str(tmp_path)), CONVERSATIONS, 0))
    ]
    first, second, third = [one.patient_key for one in studies if one is not None]
    assert first == second != third


def test_deep_transparent_and_turned_pictures_become_what_a_viewer_shows() -> None:
    def stored(image: Image.Image, **options: Any) -> bytes:
        target = io.BytesIO()
        image.save(target, options.pop("format", "PNG"), **options)
        return target.getvalue()

    ramp = np.linspace(1000, 5000, 64 * 64).reshape(64, 64).astype(np.uint16)
    deep = decode_image(stored(Image.fromarray(ramp)))
    assert deep is not None and (deep.min(), deep.max(), deep.shape) == (0, 255, (64, 64, 3))
    clear = decode_image(stored(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert clear is not None and clear.max() == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = decode_image(stored(Image.new("RGB", (8, 4)), format="JPEG", exif=exif))
    assert turned is not None and turned.shape == (8, 4, 3)
    assert decode_image(stored(Image.new("RGB", (8, 4)), format="BMP")) is None


@needs_public_text
def test_public_conversations_are_parsed_whole_and_only_lack_their_images() -> None:
    files = sorted(PUBLIC_TEXT.glob("*.json"))
    place = place_of(open_store(str(PUBLIC_TEXT)), CONVERSATIONS, 0)
    listed = list(list_conversations(place))
    assert len(listed) == sum(len(json.loads(path.read_text())) for path in files) > 3000
    reasons = Counter(defect.code for one in listed for defect in one.defects if defect.fatal)
    assert set(reasons) == {"missing_image"} and reasons["missing_image"] == len(listed)
    assert {read(one)[1][0].reason for one in listed} == {"missing_image"}
