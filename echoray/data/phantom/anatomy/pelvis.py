"""Uterus and ovary through a full bladder."""

from __future__ import annotations

import numpy as np

from echoray.data.phantom.anatomy.common import (
    FASCIA,
    FLUID,
    MUSCLE,
    SKIN,
    Lesion,
    assemble,
    cyst,
    nodule,
    oval,
    pick,
)
from echoray.data.phantom.scene import Anatomy, Layer, Probe, Tissue
from echoray.data.phantom.shapes import Band, Blob, Tube

MYOMETRIUM = Tissue(-7, grain_db=0.9)


def gynecology(rng: np.random.Generator, kind: str) -> Anatomy:
    """Dark bladder on top, pear-shaped uterus with a bright stripe, one ovary with follicles."""
    probe = Probe(
        "C9-3", 4.2, depth_mm=pick(rng, 118, 128), radius_mm=40.0, half_angle_rad=0.6, num_lines=168
    )
    dx = float(rng.uniform(-4, 4))
    fundus, neck = Blob(dx - 10, 74, 32, 21), Tube(((dx + 8, 76, 13.0), (dx + 44, 82, 9.0)))
    stripe = Tube(((dx - 32, 73, 2.5), (dx - 8, 75, pick(rng, 3.0, 4.5)), (dx + 38, 80, 1.2)))
    body: tuple[Layer, ...] = (
        Layer(Band(-20, 3), SKIN),
        Layer(Band(3, 12, curve_per_mm=-0.004), MUSCLE),
        Layer(Band(12, 13.5, curve_per_mm=-0.004), FASCIA),
        Layer(Blob(dx + 6, 36, 40, 17, 0.12, -0.006), FLUID, rim_db=9, rim_mm=1.0),
        Layer(neck, MYOMETRIUM, rim_db=3),
        Layer(fundus, MYOMETRIUM, rim_db=5, rim_mm=1.0),
        Layer(neck, MYOMETRIUM, edge_mm=2.0),
        Layer(stripe, Tissue(10, grain_db=0.5), edge_mm=1.5),
        Layer(Band(106, 220, tilt=0.05), Tissue(-6, grain_db=3.5)),
    )
    x = 54.0 if rng.random() < 0.5 else -54.0
    if kind != "ovarian_cyst":
        body += _ovary(rng, x, 68)
    return assemble("gynecology", probe, Tissue(3, grain_db=3.5), body, _lesion(rng, kind, x, dx))


def _ovary(rng: np.random.Generator, x: float, z: float) -> tuple[Layer, ...]:
    stroma = Layer(Blob(x, z, 15, 11), Tissue(-5, grain_db=0.8), rim_db=2)
    places = ((-7, -2), (0, 5), (7, -1), (0, -5), (-3, 1))
    follicles = tuple(
        Layer(Blob(x + dx, z + dz, r := float(rng.uniform(2.2, 3.6)), r), FLUID, rim_db=0, rim_mm=0.4)
        for dx, dz in places[: int(rng.integers(3, 6))]
    )
    return (stroma, *follicles)


def _lesion(rng: np.random.Generator, kind: str, ovary_x: float, dx: float) -> Lesion | None:
    x, z = dx - 14 + float(rng.uniform(-6, 6)), 74 + float(rng.uniform(-4, 4))
    if kind == "ovarian_cyst":
        place = "left_adnexa" if ovary_x > 0 else "right_adnexa"  # image left is the patient's right
        return cyst(kind, place, oval(rng, 0.92 * ovary_x, 78, (30, 42)))
    if kind == "fibroid":
        blob = oval(rng, x, z, (26, 38))
        return nodule(kind, "uterine_body", blob, Tissue(-17, attenuation=0.8, grain_db=1.0), None, rim_db=0)
    if kind == "calcified_fibroid":
        blob = oval(rng, x, z, (22, 32))
        return nodule(kind, "uterine_body", blob, Tissue(9, attenuation=1.9, grain_db=2.0), None, rim_db=10)
    return None
