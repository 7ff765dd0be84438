"""The seven systems: what each looks like, and which findings it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from echoray.data.phantom.anatomy.abdomen import kidney, liver
from echoray.data.phantom.anatomy.heart import heart
from echoray.data.phantom.anatomy.pelvis import gynecology
from echoray.data.phantom.anatomy.superficial import breast, thyroid, vessel
from echoray.data.phantom.scene import Anatomy
from echoray.types import System

KINDS: Mapping[System, tuple[str, ...]] = {
    "liver": ("normal", "cyst", "hyperechoic_nodule", "hypoechoic_mass", "calcification"),
    "kidney": ("normal", "cyst", "stone", "hydronephrosis", "hyperechoic_nodule"),
    "thyroid": ("normal", "cyst", "hypoechoic_nodule", "hyperechoic_nodule", "calcified_nodule"),
    "vessel": ("normal", "calcified_plaque", "soft_plaque", "occlusion"),
    "gynecology": ("normal", "ovarian_cyst", "fibroid", "calcified_fibroid"),
    "heart": ("normal", "dilated_ventricle", "pericardial_effusion", "septal_hypertrophy"),
    "breast": ("normal", "cyst", "fibroadenoma", "suspicious_mass", "calcification"),
}

_BUILDERS: Mapping[System, Callable[[np.random.Generator, str], Anatomy]] = {
    "liver": liver,
    "kidney": kidney,
    "thyroid": thyroid,
    "vessel": vessel,
    "gynecology": gynecology,
    "heart": heart,
    "breast": breast,
}


def build_anatomy(system: System, kind: str, rng: np.random.Generator) -> Anatomy:
    """An anatomy of ``system`` with one finding of ``kind`` (one of ``KINDS[system]``)."""
    return _BUILDERS[system](rng, kind)


__all__ = ["KINDS", "build_anatomy"]
