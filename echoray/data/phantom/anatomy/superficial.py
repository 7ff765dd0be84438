"""Thyroid, breast and carotid artery through linear high-frequency probes."""

from __future__ import annotations

import numpy as np

from echoray.data.phantom.anatomy.common import (
    BLOOD,
    FASCIA,
    FAT,
    MUSCLE,
    SKIN,
    Ends,
    Lesion,
    assemble,
    calcified,
    cyst,
    draw_side,
    nodule,
    outline,
    oval,
    pick,
    stone,
)
from echoray.data.phantom.scene import Anatomy, Doppler, Echogenicity, Finding, Flow, Layer, Probe, Tissue
from echoray.data.phantom.shapes import Band, Blob, Common, Outside

DOPPLER: tuple[Doppler, ...] = ("absent", "peripheral", "internal")


def thyroid(rng: np.random.Generator, kind: str) -> Anatomy:
    """Transverse neck: two bright lobes and an isthmus around the dark trachea, a carotid on each side."""
    probe = Probe("L12-5", 9.0, depth_mm=pick(rng, 37, 40), half_width_mm=28.0, num_lines=216)
    gland = Tissue(3, grain_db=0.6)
    tilt = float(rng.uniform(-0.1, 0.1))
    lobes = tuple(Blob(side * 15.2, 17.5, 8.6, 9.2, angle_rad=side * 0.3 + tilt) for side in (-1, 1))
    body = (
        Layer(Band(0, 1.4), SKIN),
        Layer(Band(1.4, 4), FAT),
        Layer(Band(4, 7.5, curve_per_mm=0.004), MUSCLE),
        Layer(Band(27, 60, curve_per_mm=-0.006), Tissue(-10, grain_db=1.5, stripe_db=4, stripe_mm=1.6)),
        Layer(Band(7.5, 8.1, curve_per_mm=0.004), FASCIA),
        Layer(Blob(0, 11.2, 12, 2.4), gland, rim_db=3, rim_mm=0.4),
        *(Layer(blob, gland, rim_db=5, rim_mm=0.4) for blob in lobes),
        *_trachea(),
        *(Layer(Blob(side * 25.6, 19, 3.1, 3.3), BLOOD, rim_db=6, rim_mm=0.4) for side in (-1, 1)),
    )
    return assemble("thyroid", probe, Tissue(-11, grain_db=2.0), body, _thyroid_lesion(rng, kind, probe))


def _trachea() -> tuple[Layer, ...]:
    """A bright front wall over gas: shadow with fading reverberation lines."""
    gas = Blob(0, 20.0, 7.2, 7.4)
    echoes = tuple(
        Layer(
            Common(gas, Band(13.0 + step, 13.6 + step, curve_per_mm=0.05)),
            Tissue(2 - 4 * step, attenuation=4.0),
        )
        for step in (1.6, 3.2, 4.8)
    )
    return (Layer(gas, Tissue(-32, attenuation=4.0), rim_db=13, rim_mm=0.6), *echoes)


def _thyroid_lesion(rng: np.random.Generator, kind: str, probe: Probe) -> Lesion | None:
    side = -1 if rng.random() < 0.5 else 1
    place = "right_lobe" if side < 0 else "left_lobe"  # image left is the patient's right
    x, z = side * 15.6 + float(rng.uniform(-0.6, 0.6)), 17.5 + float(rng.uniform(-1.5, 1.5))
    blob = oval(rng, x, z, (8.5, 14.5))
    doppler = DOPPLER[int(rng.integers(3))]
    if kind == "cyst":
        return cyst(kind, place, blob)
    if kind == "hypoechoic_nodule":
        return nodule(kind, place, blob, Tissue(-11, grain_db=1.0), doppler, rng=rng)
    if kind == "hyperechoic_nodule":
        return nodule(kind, place, blob, Tissue(12, grain_db=0.5), doppler, rng=rng)
    if kind == "calcified_nodule":
        return stone(probe, kind, place, (x, z - 1), pick(rng, 5, 9))
    return None


def breast(rng: np.random.Generator, kind: str) -> Anatomy:
    """Skin, dark fat lobules with bright ligaments, bright gland, dark fat, pectoral muscle, chest wall."""
    probe = Probe("L15-4", 10.0, depth_mm=pick(rng, 38, 41), half_width_mm=21.0, num_lines=192)
    phase = float(rng.uniform(0, 6.28))
    wave = {"wave_mm": 0.9, "wavelength_mm": 17.0, "phase_rad": phase}
    lobules = tuple(
        Layer(
            Blob(x, 6.2 + float(rng.uniform(-1, 1)), 5.2, 3.6, angle_rad=float(rng.uniform(-0.5, 0.5))),
            Tissue(-16, grain_db=1.5),
            rim_db=float(rng.uniform(0, 5)),
            rim_mm=0.3,
        )
        for x in np.arange(-20, 21, 6.7) + float(rng.uniform(-2, 2))
    )
    body = (
        Layer(Band(0, 1.8), Tissue(13), rim_db=8),
        Layer(Band(1.8, 11, **wave), Tissue(-10, grain_db=2.0)),
        *lobules,
        Layer(Band(11, 25, **wave), Tissue(4, grain_db=3.0, stripe_db=1.5, stripe_mm=3.0)),
        Layer(Band(25, 28, **wave), Tissue(-15, grain_db=1.5)),
        Layer(Band(28, 28.7), FASCIA),
        Layer(Band(28.7, 34.5), Tissue(-12, grain_db=0.5, stripe_db=6, stripe_mm=1.5)),
        Layer(Band(34.5, 35.4), Tissue(13), rim_db=8),
        Layer(Band(35.4, 60), Tissue(-20, grain_db=2.0)),
    )
    return assemble("breast", probe, FAT, body, _breast_lesion(rng, kind, probe), side=draw_side(rng))


def _breast_lesion(rng: np.random.Generator, kind: str, probe: Probe) -> Lesion | None:
    place = ("upper_outer", "upper_inner", "lower_outer", "lower_inner")[int(rng.integers(4))]
    x, z = float(rng.uniform(-9, 9)), float(rng.uniform(15.5, 18.5))
    if kind == "cyst":
        return cyst(kind, place, oval(rng, x, z, (9, 17)))
    if kind == "fibroadenoma":
        blob = oval(rng, x, z, (11, 19))
        return nodule(kind, place, blob, Tissue(-11, attenuation=0.42, grain_db=0.5), "absent", 2, rng)
    if kind == "suspicious_mass":
        tall = pick(rng, 11, 16)
        blob = Blob(x, z, tall / 2, round(tall * 0.75, 1) / 2, angle_rad=1.57, lobes=outline(rng, 0.16))
        return nodule(kind, place, blob, Tissue(-10, attenuation=1.05, grain_db=1.0), "internal", None, rng)
    if kind == "calcification":
        return stone(probe, kind, place, (x, z), pick(rng, 4, 7))
    return None


def vessel(rng: np.random.Generator, kind: str) -> Anatomy:
    """Longitudinal carotid artery: dark lumen between two bright walls, filled with colour."""
    probe = Probe("L9-3", 7.5, depth_mm=pick(rng, 29, 33), half_width_mm=20.0, num_lines=192)
    radius, tilt = pick(rng, 3.1, 3.8), float(rng.uniform(-0.06, 0.06))
    lumen = Band(15 - radius, 15 + radius, tilt=tilt)
    body = (
        Layer(Band(0, 1.4), SKIN),
        Layer(Band(1.4, 4.5), FAT),
        Layer(Band(4.5, 9.0, wave_mm=0.3), MUSCLE),
        Layer(Band(9.0, 9.6, wave_mm=0.3), FASCIA),
        Layer(Band(15 - radius - 1.1, 15 + radius + 1.1, tilt=tilt), Tissue(5)),
        Layer(lumen, BLOOD, rim_db=9, rim_mm=0.35),
        Layer(Band(24, 60, tilt=tilt), Tissue(-8, grain_db=1.5, stripe_db=4, stripe_mm=1.8)),
    )
    side = draw_side(rng)
    velocity = 0.62 if tilt < 0 else -0.62
    box = (-13.0, 10.0, 13.0, 20.0)
    if kind == "normal":
        flows: tuple[Flow, ...] = (Flow(lumen, radius, velocity),)
        return Anatomy("vessel", probe, Tissue(-3, grain_db=2.0), body, (), (), side, flows, box)
    finding, plaque, ends = _plaque(rng, kind, probe, radius, tilt)
    flows = () if kind == "occlusion" else _stenosed_flow(plaque, lumen, finding, velocity, radius)
    return Anatomy(
        "vessel", probe, Tissue(-3, grain_db=2.0), (*body, *plaque), (finding,), (ends,), side, flows, box
    )


def _plaque(
    rng: np.random.Generator, kind: str, probe: Probe, radius: float, tilt: float
) -> tuple[Finding, tuple[Layer, ...], Ends]:
    x = float(rng.uniform(-5, 5))
    if kind == "occlusion":
        length = pick(rng, 22, 30)
        plug = Common(Band(15 - radius, 15 + radius, tilt=tilt), Blob(x, 15 + tilt * x, length / 2, 40))
        finding = Finding(kind, "common_carotid", x, 15 + tilt * x, (length,), "hypoechoic", doppler="absent")
        layers = (Layer(plug, Tissue(-6, grain_db=2.0), edge_mm=0.6),)
        return finding, layers, ((x - length / 2, 15 + tilt * x), (x + length / 2, 15 + tilt * x))
    anterior = kind == "calcified_plaque"
    percent = int(rng.integers(7, 14)) * 5 if kind == "soft_plaque" else int(rng.integers(5, 9)) * 5
    height = 2 * radius * percent / 100
    length = pick(rng, 8, 13)
    wall = 15 + tilt * x + (-radius if anterior else radius)
    hill = Common(Blob(x, wall, length / 2, height), Band(15 - radius - 0.8, 15 + radius + 0.8, tilt=tilt))
    tissue = calcified(probe, height) if anterior else Tissue(-3, grain_db=1.5)
    place = "anterior_wall" if anterior else "posterior_wall"
    level: Echogenicity = "hyperechoic" if anterior else "hypoechoic"
    finding = Finding(
        kind, place, x, wall, (length,), level, shadow=anterior, doppler="turbulent", percent=percent
    )
    layer = Layer(hill, tissue, rim_db=12 if anterior else 3, rim_mm=0.4)
    return finding, (layer,), ((x - length / 2, wall), (x + length / 2, wall))


def _stenosed_flow(
    plaque: tuple[Layer, ...], lumen: Band, finding: Finding, velocity: float, radius: float
) -> tuple[Flow, ...]:
    free = Common(lumen, Outside(plaque[0].shape))
    half = finding.size_mm[0] / 2
    jet = Common(free, Blob(finding.x_mm + 0.3 * half, 15, 1.1 * half, 40))
    return Flow(free, radius, velocity), Flow(jet, 0.6 * radius, velocity, turbulent=True)
