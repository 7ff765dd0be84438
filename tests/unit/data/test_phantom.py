from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from echoray.config.data import PhantomConfig
from echoray.data.phantom import PhantomStudy, synthesize_study, write_corpus, write_one, write_study
from echoray.data.phantom.anatomy import KINDS, build_anatomy
from echoray.data.phantom.corpus import fault_of, patient_ordinal
from echoray.data.phantom.identity import Identity, draw_patient, draw_visit
from echoray.data.phantom.overlay import image_area
from echoray.data.phantom.page import GREEN, WHITE
from echoray.data.phantom.physics import envelope, simulate
from echoray.data.phantom.report import compose_report
from echoray.data.phantom.scene import Anatomy, Probe, Scene, Tissue, View, fit_panel
from echoray.types import SYSTEMS, Box, Language, System

SIZE = {"width": 640, "height": 480}
ORGAN = {
    "liver": "liver|hepatic",
    "kidney": "kidney|renal",
    "thyroid": "thyroid",
    "vessel": "carotid",
    "gynecology": "uter|ovar|pelvi|fibroid|leiomyoma",
    "heart": "heart|ventric|pericard|septum",
    "breast": "breast",
}


def study_with_finding(system: System) -> PhantomStudy:
    studies = (
        synthesize_study(SYSTEMS.index(system) + len(SYSTEMS) * turn, seed=11, language="en", **SIZE)
        for turn in range(20)
    )
    return next(study for study in studies if study.truth.findings)


def digest(study: PhantomStudy) -> str:
    return hashlib.sha256(b"".join(frame.pixels.tobytes() for frame in study.frames)).hexdigest()


def test_a_study_depends_on_seed_and_index_only() -> None:
    alone = digest(synthesize_study(5, seed=3, language="en", **SIZE))
    forward = [digest(synthesize_study(index, seed=3, language="en", **SIZE)) for index in (4, 5, 6)]
    backward = [digest(synthesize_study(index, seed=3, language="en", **SIZE)) for index in (6, 5, 4)]
    assert forward[1] == alone
    assert forward == backward[::-1]
    assert len({*forward, digest(synthesize_study(5, seed=4, language="en", **SIZE))}) == 4


def test_written_files_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    config = PhantomConfig(num_studies=20)
    for folder, order in (("one", (2, 3)), ("two", (3, 2))):
        for index in order:
            write_one(index, tmp_path / folder, config, seed=7, language="en")
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.dcm"))
    assert len(names) >= 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_envelope_of_even_tissue_has_rayleigh_statistics() -> None:
    probe = Probe("test", 5.0, depth_mm=60, half_width_mm=20)
    even = Anatomy("liver", probe, Tissue(0), (), (), ())
    view = View(even, fit_panel(probe, Box(0, 0, 400, 400)))
    speckle = envelope(view, np.random.default_rng(0))[40:-40, 20:-20]
    assert speckle.mean() / speckle.std() == pytest.approx(1.91, abs=0.1)
    assert np.mean(np.square(speckle)) == pytest.approx(1.0, abs=0.1)  # 0 dB is where the docstring says


def rendered(anatomy: Anatomy) -> tuple[View, np.ndarray]:
    """The view and its grey frame, averaged over speckle."""
    view = View(anatomy, fit_panel(anatomy.probe, image_area(**SIZE)))
    frames = [
        simulate(Scene(**SIZE, views=(view,)), np.random.default_rng(seed))[..., 0] for seed in range(2)
    ]
    return view, np.mean(frames, axis=0)


def brightness_along_beam(grey: np.ndarray, view: View, extra_mm: float) -> float:
    """Mean grey of a small patch ``extra_mm`` behind the finding's centre, along its scan line."""
    finding, probe = view.anatomy.findings[0], view.anatomy.probe
    ray = (
        np.array([0.0, 1.0]) if probe.is_linear else np.array([finding.x_mm, finding.z_mm + probe.radius_mm])
    )
    x_mm, z_mm = np.array([finding.x_mm, finding.z_mm]) + extra_mm * ray / np.linalg.norm(ray)
    column, row = (round(v) for v in view.panel.to_px(x_mm, z_mm))
    return float(grey[row - 2 : row + 3, column - 2 : column + 3].mean())


@pytest.mark.parametrize(
    ("system", "kind"),
    [
        ("liver", "cyst"),
        ("thyroid", "cyst"),
        ("breast", "cyst"),
        ("liver", "calcification"),
        ("kidney", "stone"),
        ("thyroid", "calcified_nodule"),
        ("breast", "calcification"),
        ("breast", "suspicious_mass"),
        ("liver", "hypoechoic_mass"),
        ("thyroid", "hypoechoic_nodule"),
        ("liver", "hyperechoic_nodule"),
        ("thyroid", "hyperechoic_nodule"),
        ("gynecology", "fibroid"),
    ],
)
def test_a_lesion_looks_as_its_truth_says(system: System, kind: str) -> None:
    with_lesion = build_anatomy(system, kind, np.random.default_rng(5))
    finding = with_lesion.findings[0]
    # The same anatomy without its lesion (the last layer): what the place would look like.
    without = replace(with_lesion, layers=with_lesion.layers[:-1])
    (view, grey), (_, plain) = rendered(with_lesion), rendered(without)
    inside, before = (brightness_along_beam(image, view, 0) for image in (grey, plain))
    half_mm = max(finding.size_mm) / 2
    behind, behind_before = (brightness_along_beam(image, view, 1.2 * half_mm + 1) for image in (grey, plain))
    if finding.echogenicity == "anechoic":
        assert inside < 12 < before - 40
    elif finding.echogenicity == "hypoechoic":
        assert 12 < inside < before - 15
    elif not finding.shadow:
        assert inside > before + 25
    if finding.enhancement:
        assert behind > behind_before + 15
    if finding.shadow:
        assert behind < 0.6 * behind_before


@pytest.mark.parametrize("system", ["liver", "breast", "heart"])
def test_calipers_times_the_tags_scale_are_the_stated_size(system: System, tmp_path: Path) -> None:
    study = study_with_finding(system)
    write_study(study, tmp_path)
    image = pydicom.dcmread(tmp_path / "frame-0.dcm")
    region = image.SequenceOfUltrasoundRegions[0]
    assert region.PhysicalUnitsXDirection == 3  # cm
    mm_per_px = 10 * region.PhysicalDeltaX
    stated = study.truth.findings[0].size_mm
    for size_mm, ends in zip(stated, study.truth.marks[0].calipers_px, strict=True):
        for column, row in ends:
            near = image.pixel_array[round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2]
            assert (near == GREEN).all(axis=-1).any()  # the cross is drawn where the truth has it
        assert np.hypot(*np.subtract(*ends)) * mm_per_px == pytest.approx(size_mm, abs=0.05)


@pytest.mark.parametrize("system", SYSTEMS)
def test_depth_ticks_are_ten_millimetres_apart_by_the_tags_scale(system: System) -> None:
    study = synthesize_study(SYSTEMS.index(system), seed=11, language="en", **SIZE)
    marks = study.truth.marks[0]
    ticks = marks.keep_boxes[-1 - len(marks.calipers_px)]  # the measurements' text comes after the ticks
    region = study.frames[0].regions[0]
    assert region.mm_per_px is not None
    column = study.frames[0].pixels[ticks.y0 : ticks.y1, ticks.x0 + 1]
    rows = np.flatnonzero((column == WHITE).all(axis=-1))
    assert len(rows) >= 3
    assert (rows[-1] - rows[0]) * region.mm_per_px / (len(rows) - 1) == pytest.approx(10, abs=0.15)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_report_follows_from_the_truth(system: System, language: Language) -> None:
    echo_words = {
        "en": {
            "anechoic": "anechoic",
            "hypoechoic": "hypoechoic",
            "isoechoic": "isoechoic",
            "hyperechoic": "hyperechoic",
        },
        "zh": {"anechoic": "无回声", "hypoechoic": "低回声", "isoechoic": "等回声", "hyperechoic": "强回声"},
    }[language]
    signs = {"en": ("shadow", "enhancement"), "zh": ("声影", "回声增强")}[language]
    for kind in KINDS[system]:
        for seed in range(8):
            rng = np.random.default_rng(seed)
            anatomy = build_anatomy(system, kind, rng)
            patient = draw_patient(rng, language, female=False)
            identity = Identity(patient, draw_visit(rng, language, patient))
            report, clean = compose_report(anatomy, identity, language, rng)
            for finding in anatomy.findings:
                assert all(f"{axis:.1f}" in clean.findings for axis in finding.size_mm)
                assert echo_words[finding.echogenicity] in clean.findings.lower()
                assert (signs[0] in clean.findings) == finding.shadow
                assert (signs[1] in clean.findings) == finding.enhancement
            assert all(text not in clean.text for text in identity.strings())
            assert patient.name in report.text and patient.patient_id in report.text
            assert clean.findings in report.findings and clean.impression in report.impression
            if language == "en":
                assert 40 <= len(clean.text.split()) <= 90
                assert re.search(ORGAN[system], clean.text, re.IGNORECASE)
                assert "{" not in report.text
                assert not re.search(r"\ba (anechoic|isoechoic)|\ban hyp", clean.text, re.IGNORECASE)
            else:
                assert not re.search(r"[A-Za-z]", re.sub(r"CDFI|(TI|BI|O)-RADS|mm", "", report.text))


def test_a_normal_and_an_abnormal_report_never_share_an_impression() -> None:
    from echoray.data.phantom.report import load_phrases

    for language in ("en", "zh"):
        for system, phrases in load_phrases(language)["systems"].items():
            said = [line for kind in KINDS[system] for line in phrases[kind]["impression"]]
            assert len(said) == len(set(said)), (language, system)


def test_lesions_and_their_calipers_lie_within_the_field() -> None:
    for system in SYSTEMS:
        for kind in KINDS[system]:
            for seed in range(40):
                anatomy = build_anatomy(system, kind, np.random.default_rng(seed))
                ends = np.array(anatomy.calipers_mm, np.float32).reshape(-1, 2)
                sample, line = anatomy.probe.to_beam(ends[:, 0], ends[:, 1])
                num_samples, num_lines = anatomy.probe.grid_shape
                assert ((sample >= 0) & (sample < num_samples)).all(), (system, kind, seed)
                assert ((line >= 0) & (line <= num_lines - 1)).all(), (system, kind, seed)


def test_systems_are_told_apart_by_a_nearest_centroid() -> None:
    def thumbnail(index: int) -> np.ndarray:
        pixels = synthesize_study(index, seed=21, language="en", width=320, height=240).frames[0].pixels
        area = image_area(320, 240)
        grey = pixels[area.y0 : area.y1, area.x0 : area.x1].mean(axis=-1)
        rows = np.array_split(grey, 16)
        return np.array([[cell.mean() for cell in np.array_split(row, 16, axis=1)] for row in rows]).ravel()

    count = len(SYSTEMS)
    train = np.array([[thumbnail(turn * count + s) for turn in range(5)] for s in range(count)]).mean(axis=1)
    test = [(s, thumbnail(turn * count + s)) for s in range(count) for turn in range(5, 10)]
    right = sum(int(np.argmin(np.linalg.norm(train - image, axis=1)) == s) for s, image in test)
    assert right / len(test) > 0.9


@pytest.mark.parametrize("language", ["en", "zh"])
def test_identity_is_burned_into_the_banner_and_nowhere_else(language: Language) -> None:
    study = synthesize_study(9, seed=2, language=language, **SIZE)
    pixels, truth = study.frames[0].pixels, study.truth
    top = min(region.box.y0 for region in study.frames[0].regions)
    assert len(truth.banner_boxes[0]) >= 5
    for box in truth.banner_boxes[0]:
        assert box.y1 <= top
        assert pixels[box.y0 : box.y1, box.x0 : box.x1].max() > 200
        for keep in truth.keep_boxes[0]:
            assert keep.y0 >= box.y1 or keep.x0 >= box.x1 or keep.x1 <= box.x0
    for box in truth.keep_boxes[0]:
        assert pixels[box.y0 : box.y1, box.x0 : box.x1].max() > 130


def test_a_missing_chinese_font_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from echoray.data.phantom.fonts import load_face, load_font
    from echoray.errors import InputDataError

    load_face.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputDataError, match="pip install noto-cjk-sans-otc"):
        load_font("zh", 14)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    out = tmp_path_factory.mktemp("corpus")
    report = write_corpus(out, PhantomConfig(num_studies=21), seed=7, language="zh")
    assert set(report.systems.values()) == {3}
    assert report.num_files == len(list(out.rglob("*.dcm")))
    return out, [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]


def test_every_sound_study_opens_with_its_regions_report_and_pixels(
    corpus: tuple[Path, list[dict[str, object]]],
) -> None:
    out, truths = corpus
    sound = [truth for truth in truths if truth["fault"] is None]
    assert len(sound) == 18
    for truth in sound:
        folder = out / f"study-{truth['index']:05d}"
        report = pydicom.dcmread(folder / "report.dcm")
        said = {item.ConceptNameCodeSequence[0].CodeValue: item.TextValue for item in report.ContentSequence}
        assert {"findings": said["121070"], "impression": said["121073"]} == truth["report"]
        for path in folder.glob("frame-*.dcm"):
            image = pydicom.dcmread(path)
            assert image.pixel_array.shape == (480, 640, 3)
            assert image.StudyInstanceUID == report.StudyInstanceUID and image.SOPInstanceUID.is_valid
            assert str(image.PatientID) in json.dumps(truth["patient"])
            assert [item.RegionDataType for item in image.SequenceOfUltrasoundRegions].count(1) == 1


def decodes(path: Path) -> bool:
    try:
        return bool(pydicom.dcmread(path).pixel_array.size)
    except Exception:  # which of pydicom's errors depends on the damage
        return False


def test_a_corrupt_study_has_no_readable_image_whichever_way_it_is_damaged(tmp_path: Path) -> None:
    cut = set()
    for index in range(8):
        study = synthesize_study(index, seed=1, language="en", width=320, height=240, fault="corrupt")
        write_study(study, tmp_path / str(index))
        image = tmp_path / str(index) / "frame-0.dcm"
        assert not decodes(image)
        cut.add(image.stat().st_size > 10_000)
    assert cut == {True, False}  # some are cut short, some are noise


def test_each_fault_is_on_disk_as_its_name_says(corpus: tuple[Path, list[dict[str, object]]]) -> None:
    out, truths = corpus
    folders = {truth["fault"]: out / f"study-{truth['index']:05d}" for truth in truths if truth["fault"]}
    assert set(folders) == {"multi_region", "no_report", "corrupt"}
    assert not (folders["no_report"] / "report.dcm").exists()
    assert not decodes(folders["corrupt"] / "frame-0.dcm")
    image = pydicom.dcmread(folders["multi_region"] / "frame-0.dcm")
    left, right = image.SequenceOfUltrasoundRegions
    assert left.RegionDataType == right.RegionDataType == 1
    assert left.RegionLocationMaxX1 < right.RegionLocationMinX0


def test_patients_with_two_studies_keep_their_identity_and_women_their_sex(
    corpus: tuple[Path, list[dict[str, object]]],
) -> None:
    people: dict[str, list[object]] = {}
    for truth in corpus[1]:
        person = truth["patient"]["patient"]  # type: ignore[index]
        people.setdefault(person["patient_id"], []).append(person)
        assert person["sex"] == "F" or truth["system"] not in ("gynecology", "breast")
    assert sorted({len(studies) for studies in people.values()}) == [1, 2]
    assert all(studies[0] == studies[-1] for studies in people.values())


def test_faults_and_shared_patients_come_at_their_rates() -> None:
    config = PhantomConfig(num_studies=200, multi_region_rate=0.05, corrupt_rate=0.0)
    faults = [fault_of(index, config, seed=1) for index in range(200)]
    assert [faults.count(name) for name in ("multi_region", "no_report", "corrupt")] == [10, 4, 0]
    for rate in (0.0, 0.1, 0.37, 1.0):
        owners = [patient_ordinal(index, rate) for index in range(500)]
        counts = np.bincount(owners)
        assert owners == sorted(owners) and set(counts) <= {1, 2}
        assert np.mean(counts[:-1] == 2) == pytest.approx(rate, abs=0.01)
