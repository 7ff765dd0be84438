"""One synthetic study: frames and ground truth, from (seed, index) alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from echoray.data.phantom.anatomy import KINDS, build_anatomy
from echoray.data.phantom.identity import Identity, Patient, draw_patient, draw_visit
from echoray.data.phantom.overlay import Marks, annotate, flow_box_px, image_area
from echoray.data.phantom.physics import simulate
from echoray.data.phantom.report import compose_report, label_text
from echoray.data.phantom.scene import Anatomy, Finding, Scene, View, fit_panel
from echoray.errors import ConfigError
from echoray.types import SYSTEMS, Box, Frame, Language, Region, Report, System

Fault = Literal["multi_region", "no_report", "corrupt"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
FEMALE_SYSTEMS = ("gynecology", "breast")


@dataclass(frozen=True)
class Truth:
    """What is known about a synthetic study; ``marks`` and ``mm_per_px`` have one entry per frame."""

    index: int
    system: System
    language: Language
    kind: str
    findings: tuple[Finding, ...]
    report: Report
    clean_report: Report
    patient: Identity
    marks: tuple[Marks, ...]
    mm_per_px: tuple[float, ...]
    fault: Fault | None = None

    @property
    def banner_boxes(self) -> tuple[tuple[Box, ...], ...]:
        """Per frame: the boxes of burned-in text that identifies the patient or the visit."""
        return tuple(mark.banner_boxes for mark in self.marks)

    @property
    def keep_boxes(self) -> tuple[tuple[Box, ...], ...]:
        """Per frame: the boxes of burned-in text that is to stay."""
        return tuple(mark.keep_boxes for mark in self.marks)


@dataclass(frozen=True)
class PhantomStudy:
    """Frames and their truth; ``seed`` is kept for the identifiers of the DICOM instances."""

    seed: int
    frames: tuple[Frame, ...]
    truth: Truth


def derive_rng(seed: int, index: int, purpose: str) -> np.random.Generator:
    """A generator that depends on its arguments only, so that order and worker do not matter."""
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, index, word])


def patient_of(ordinal: int, *, seed: int, language: Language, systems: tuple[System, ...]) -> Patient:
    """Invented patient number ``ordinal``; ``systems`` are all that the patient is examined for."""
    rng = derive_rng(seed, ordinal, "patient")
    return draw_patient(rng, language, female=any(system in FEMALE_SYSTEMS for system in systems))


def system_of(index: int) -> System:
    """Systems take turns."""
    return SYSTEMS[index % len(SYSTEMS)]


def synthesize_study(
    index: int,
    *,
    seed: int,
    language: Language,
    width: int,
    height: int,
    fault: str | None = None,
    patient: Patient | None = None,
) -> PhantomStudy:
    """Study number ``index``: one or two RGB frames of (height, width, 3) and their ground truth.

    The same arguments give the same bytes. Without ``patient`` the study has a patient of its own.
    Raises ConfigError for an unknown ``fault``.
    """
    if fault is not None and fault not in FAULTS:
        raise ConfigError(
            f"fault {fault!r} is not known, expected one of {', '.join(FAULTS)}", hint="correct it"
        )
    system = system_of(index)
    rng = derive_rng(seed, index, "scene")
    kinds = KINDS[system]
    kind = kinds[int(rng.integers(len(kinds)))]
    anatomy = build_anatomy(system, kind, rng)
    patient = patient or patient_of(index, seed=seed, language=language, systems=(system,))
    identity = Identity(patient, draw_visit(derive_rng(seed, index, "visit"), language, patient))
    label = label_text(anatomy, language)
    layout = int(rng.integers(6))
    frames, marks, scales = [], [], []
    for number, scene in enumerate(_scenes(anatomy, rng, width, height, fault)):
        pixels = simulate(scene, derive_rng(seed, index, f"speckle {number}"))
        pixels, mark = annotate(
            pixels, scene.views, identity, label, language=language, layout=layout, measured=number == 0
        )
        frames.append(Frame(pixels, _regions(scene)))
        marks.append(mark)
        scales.append(scene.views[0].panel.mm_per_px)
    report, clean = compose_report(anatomy, identity, language, derive_rng(seed, index, "report"))
    truth = Truth(
        index,
        system,
        language,
        kind,
        anatomy.findings,
        report,
        clean,
        identity,
        tuple(marks),
        tuple(scales),
        fault,
    )
    return PhantomStudy(seed, tuple(frames), truth)


def _scenes(
    anatomy: Anatomy, rng: np.random.Generator, width: int, height: int, fault: str | None
) -> list[Scene]:
    """One scene per frame; a nodule with Doppler gets a second in colour, others sometimes a plain one."""
    area = image_area(width, height)
    gain_db = float(rng.uniform(-2, 2))
    shift_mm = 0.02 * anatomy.probe.field_width_mm * float(rng.uniform(-1, 1))
    vessel = anatomy.system == "vessel"
    plain = View(anatomy, fit_panel(anatomy.probe, area), gain_db=gain_db, colour=vessel)
    second = bool(rng.random() < 0.25) or (anatomy.flow_box_mm is not None and not vessel)
    if fault == "multi_region":
        middle = (area.x0 + area.x1) // 2
        gap = round(0.02 * width)
        halves = (Box(area.x0, area.y0, middle - gap, area.y1), Box(middle + gap, area.y0, area.x1, area.y1))
        views = tuple(replace(plain, panel=fit_panel(anatomy.probe, half), colour=False) for half in halves)
        return [Scene(width, height, (views[0], replace(views[1], shift_mm=shift_mm)))]
    scenes = [Scene(width, height, (plain,))]
    if second and fault != "corrupt":
        colour = anatomy.flow_box_mm is not None
        scenes.append(Scene(width, height, (replace(plain, shift_mm=shift_mm, colour=colour),)))
    return scenes


def _regions(scene: Scene) -> tuple[Region, ...]:
    """A tissue region per view, and the colour box within it."""
    regions = []
    for view in scene.views:
        regions.append(Region(view.panel.box, 1, 1, view.panel.mm_per_px))
        box = flow_box_px(view) if view.colour else None
        if box is not None:
            regions.append(Region(box, 2, 1, view.panel.mm_per_px))
    return tuple(regions)
