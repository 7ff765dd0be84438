"""Liver and kidney, through a curved low-frequency probe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from echoray.data.phantom.anatomy.common import (
    BLOOD,
    FASCIA,
    FLUID,
    MUSCLE,
    SKIN,
    Ends,
    Lesion,
    assemble,
    cyst,
    draw_side,
    nodule,
    outline,
    oval,
    pick,
    stone,
)
from echoray.data.phantom.scene import Anatomy, Finding, Layer, Probe, Tissue
from echoray.data.phantom.shapes import Band, Blob, Tube

ABDOMINAL = Probe("C5-1", 3.5, 150, radius_mm=50.0, half_angle_rad=0.51, num_lines=168)
LIVER = Tissue(0, grain_db=0.7)


def liver(rng: np.random.Generator, kind: str) -> Anatomy:
    """Homogeneous parenchyma, hepatic veins, bright-walled portal vein, diaphragm; one lesion or none."""
    probe = replace(ABDOMINAL, depth_mm=pick(rng, 140, 155))
    dome = 118 + float(rng.uniform(-6, 6))
    tilt = float(rng.uniform(-0.12, 0.12))
    body = (
        Layer(Band(-20, 3), SKIN),
        Layer(Band(3, 13, curve_per_mm=-0.004), MUSCLE),
        Layer(Band(12.5, 14, curve_per_mm=-0.004), FASCIA),
        *_liver_vessels(rng),
        Layer(Band(dome + 3, 260, tilt=tilt, curve_per_mm=-0.006), Tissue(-15, grain_db=4)),
        Layer(Band(dome, dome + 3, tilt=tilt, curve_per_mm=-0.006), Tissue(14), rim_db=12, rim_mm=1.2),
    )
    lesion = _liver_lesion(rng, kind, probe)
    return assemble("liver", probe, LIVER, body, lesion)


def _liver_vessels(rng: np.random.Generator) -> tuple[Layer, ...]:
    x, z = float(rng.uniform(-6, 6)), float(rng.uniform(98, 104))
    middle = Tube(((x, z, 4.5), (x - 14, z - 28, 3.2), (x - 20, z - 52, 1.6)))
    right = Tube(((x, z, 4.5), (x - 34, z - 10, 3.2), (x - 60, z - 34, 1.6)))
    left = Tube(((x, z, 4.0), (x + 24, z - 24, 2.8), (x + 36, z - 48, 1.5)))
    portal = Tube(((x + 52, z - 34, 5.0), (x + 30, z - 52, 4.2), (x + 12, z - 60, 3.0), (x - 4, z - 74, 2.0)))
    veins = tuple(Layer(tube, BLOOD, edge_mm=1.0) for tube in (middle, right, left))
    return (*veins, Layer(portal, BLOOD, rim_db=7, rim_mm=1.2, edge_mm=1.0))


def _liver_lesion(rng: np.random.Generator, kind: str, probe: Probe) -> Lesion | None:
    on_right = bool(rng.random() < 0.6)
    x = float(rng.uniform(-38, -22) if on_right else rng.uniform(18, 32))
    z = float(rng.uniform(60, 80))
    place = "right_lobe" if on_right else "left_lobe"
    if kind == "cyst":
        return cyst(kind, place, oval(rng, x, z, (24, 42)))
    if kind == "hyperechoic_nodule":
        return nodule(kind, place, oval(rng, x, z, (22, 38)), Tissue(11, grain_db=0.5), None)
    if kind == "hypoechoic_mass":
        blob = oval(rng, x, z, (28, 44))
        return nodule(kind, place, blob, Tissue(-11, grain_db=2.0), None)
    if kind == "calcification":
        return stone(probe, kind, place, (x, z), pick(rng, 10, 20))
    return None


def kidney(rng: np.random.Generator, kind: str) -> Anatomy:
    """A bean with dark cortex, darker pyramids and bright sinus in bright fat; one lesion or none."""
    probe = replace(ABDOMINAL, name="C6-2", frequency_mhz=3.8, depth_mm=pick(rng, 112, 124))
    bean = Blob(0, 62, 54, 25, angle_rad=float(rng.uniform(-0.08, 0.08)), bend_per_mm=0.002)
    sinus = Blob(0, 64, 33, 12, angle_rad=bean.angle_rad, bend_per_mm=0.002, lobes=outline(rng, 0.09))
    body = (
        Layer(Band(-20, 3), SKIN),
        Layer(Band(3, 22, curve_per_mm=-0.003), MUSCLE),
        Layer(Band(21.5, 23.5, curve_per_mm=-0.003), FASCIA),
        Layer(Band(96, 200, curve_per_mm=-0.002), Tissue(-12, grain_db=2, stripe_db=4, stripe_mm=5)),
        Layer(Blob(0, 62, 60, 30, bean.angle_rad, 0.002), Tissue(7, grain_db=2.0), edge_mm=5),
        Layer(bean, Tissue(-8, grain_db=0.8), rim_db=8, rim_mm=1.0),
        *_pyramids(bean),
        Layer(sinus, Tissue(10, grain_db=2.5), edge_mm=3),
    )
    lesion = _kidney_lesion(rng, kind, bean, probe)
    return assemble("kidney", probe, Tissue(-3, grain_db=2.5), body, lesion, side=draw_side(rng))


def _pyramids(bean: Blob) -> tuple[Layer, ...]:
    layers = []
    for turn in np.linspace(0.35, 2 * np.pi + 0.35, 9, endpoint=False):
        x = bean.x_mm + 0.72 * bean.a_mm * float(np.cos(turn))
        z = bean.z_mm + 0.68 * bean.b_mm * float(np.sin(turn)) - 0.002 * (x - bean.x_mm) ** 2
        layers.append(Layer(Blob(x, z, 5.5, 4.0, angle_rad=float(turn)), Tissue(-15), edge_mm=2))
    return tuple(layers)


def _kidney_lesion(rng: np.random.Generator, kind: str, bean: Blob, probe: Probe) -> Lesion | None:
    if kind == "hydronephrosis":
        return _hydronephrosis(Blob(0, 63, pick(rng, 24, 30), pick(rng, 8, 12), bean.angle_rad, 0.002))
    place = ("upper_pole", "middle", "lower_pole")[int(rng.integers(3))]
    x = {"upper_pole": -36.0, "middle": 0.0, "lower_pole": 36.0}[place] + float(rng.uniform(-3, 3))
    if kind == "cyst":
        return cyst(kind, place, oval(rng, x, 47 if place == "middle" else 56, (20, 34)))
    if kind == "hyperechoic_nodule":
        z = 46 if place == "middle" else 57
        return nodule(kind, place, oval(rng, x, z, (16, 26)), Tissue(13, grain_db=0.5), None)
    if kind == "stone":
        return stone(probe, kind, place, (0.62 * x, 64 - 0.001 * x * x), pick(rng, 9, 18))
    return None


def _hydronephrosis(pelvis: Blob) -> Lesion:
    calyces = [
        Blob(pelvis.x_mm + share * pelvis.a_mm, pelvis.z_mm + dz, a, 5.5, angle_rad=0.5 * share)
        for share, dz, a in ((-0.95, -2, 8), (-0.45, -8, 5), (0.45, -8, 5), (0.95, -2, 8))
    ]
    layers = tuple(Layer(blob, FLUID, edge_mm=2.0) for blob in (*calyces, pelvis))
    depth_mm = round(2 * pelvis.b_mm, 1)
    finding = Finding(
        "hydronephrosis", "pelvis", pelvis.x_mm, pelvis.z_mm, (depth_mm,), "anechoic", enhancement=True
    )
    ends: Ends = ((pelvis.x_mm, pelvis.z_mm - pelvis.b_mm), (pelvis.x_mm, pelvis.z_mm + pelvis.b_mm))
    return Lesion(finding, layers, (ends,))
