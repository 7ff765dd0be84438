"""Apical four-chamber view through a phased array."""

from __future__ import annotations

import numpy as np

from echoray.data.phantom.anatomy.common import FLUID, Ends, pick
from echoray.data.phantom.scene import Anatomy, Finding, Layer, Probe, Tissue
from echoray.data.phantom.shapes import Band, Blob, Common, Tube

MUSCLE_WALL = Tissue(2, grain_db=1.5)
CHAMBER = Tissue(-36, attenuation=0.48)


def heart(rng: np.random.Generator, kind: str) -> Anatomy:
    """Four dark chambers in grey walls, apex on top; dilated, hypertrophied, in effusion or normal."""
    probe = Probe(
        "S5-1", 2.6, depth_mm=pick(rng, 158, 168), radius_mm=6.0, half_angle_rad=0.68, num_lines=144
    )
    left = pick(rng, 58, 68) if kind == "dilated_ventricle" else pick(rng, 40, 48)
    septum = pick(rng, 18, 24) if kind == "septal_hypertrophy" else pick(rng, 8, 10)
    rim = pick(rng, 12, 22) if kind == "pericardial_effusion" else 0.0
    right = 15.0
    septum_x = right - left / 2  # both ventricles together are centred
    left_x, right_x = septum_x + septum / 2 + left / 2, septum_x - septum / 2 - right
    half_width = (left + septum) / 2 + right + 8
    wall = Blob(0, 90, half_width, 72)
    cuff = Common(Blob(0, 90, half_width + rim, 72 + 0.5 * rim), Band(-50, 122))
    body = (
        *((Layer(cuff, FLUID, rim_db=12, rim_mm=1.5),) if rim else ()),
        Layer(wall, MUSCLE_WALL, rim_db=7, rim_mm=1.2, edge_mm=2),
        Layer(Blob(left_x, 75, left / 2, 40), CHAMBER, rim_db=1, edge_mm=1.5),
        Layer(Blob(right_x, 76, right, 33, angle_rad=0.12), CHAMBER, rim_db=1, edge_mm=1.5),
        Layer(Blob(left_x, 132, 20, 17), CHAMBER, rim_db=1, edge_mm=1.5),
        Layer(Blob(right_x + 1, 130, 17, 16), CHAMBER, rim_db=1, edge_mm=1.5),
        *_valve(left_x, 112, left / 2 - 2),
        *_valve(right_x, 109, right),
    )
    findings, calipers = _measure(kind, left_x, left, septum_x, septum, half_width, rim)
    return Anatomy("heart", probe, Tissue(-13, grain_db=4.0), body, findings, calipers)


def _valve(x: float, z: float, reach: float) -> tuple[Layer, ...]:
    leaflets = (((x - reach, z, 0.9), (x - 2, z + 5, 0.7)), ((x + reach, z, 0.9), (x + 2, z + 5, 0.7)))
    return tuple(Layer(Tube(points), Tissue(12), edge_mm=0.8) for points in leaflets)


def _measure(
    kind: str, left_x: float, left: float, septum_x: float, septum: float, edge_x: float, rim: float
) -> tuple[tuple[Finding, ...], tuple[Ends, ...]]:
    """The finding with the axis it is measured on; nothing for a normal heart."""
    if kind == "dilated_ventricle":
        finding = Finding(kind, "left_ventricle", left_x, 75, (left,), "anechoic")
        return (finding,), (((left_x - left / 2, 75), (left_x + left / 2, 75)),)
    if kind == "septal_hypertrophy":
        finding = Finding(kind, "septum", septum_x, 75, (septum,), "isoechoic")
        return (finding,), (((septum_x - septum / 2, 75), (septum_x + septum / 2, 75)),)
    if kind == "pericardial_effusion":
        finding = Finding(kind, "pericardium", edge_x + rim / 2, 90, (rim,), "anechoic")
        return (finding,), (((edge_x, 90), (edge_x + rim, 90)),)
    return (), ()
