"""Tissues, and the lesions that several systems share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echoray.data.phantom.scene import (
    Anatomy,
    Doppler,
    Echogenicity,
    Finding,
    Flow,
    Layer,
    Probe,
    Side,
    Tissue,
)
from echoray.data.phantom.shapes import Blob, Lobe, Tube
from echoray.types import System

FLUID = Tissue(-60, attenuation=0.0)
BLOOD = Tissue(-36, attenuation=0.4)
SKIN = Tissue(9, attenuation=0.5)
FAT = Tissue(-10, grain_db=2.5)
MUSCLE = Tissue(-9, grain_db=1.0, stripe_db=4.0, stripe_mm=2.2)
FASCIA = Tissue(9)
SHADOW_DB = 34.0  # two-way loss through a calcification

Ends = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Lesion:
    """What one lesion adds to an anatomy."""

    finding: Finding
    layers: tuple[Layer, ...]
    calipers_mm: tuple[Ends, ...]
    flows: tuple[Flow, ...] = ()
    extent_mm: tuple[float, float, float, float] = (0, 0, 0, 0)  # x0, z0, x1, z1


def assemble(
    system: System,
    probe: Probe,
    background: Tissue,
    body: tuple[Layer, ...],
    lesion: Lesion | None,
    side: Side | None = None,
) -> Anatomy:
    """The anatomy with the lesion (if any) painted last; its colour box is the lesion's surroundings."""
    if lesion is None:
        return Anatomy(system, probe, background, body, (), (), side)
    layers = body + lesion.layers
    box = lesion.extent_mm if lesion.finding.doppler else None
    return Anatomy(
        system, probe, background, layers, (lesion.finding,), lesion.calipers_mm, side, lesion.flows, box
    )


def draw_side(rng: np.random.Generator) -> Side:
    """Left or right, evenly."""
    return "left" if rng.random() < 0.5 else "right"


def pick(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform draw, rounded to 0.1: what is written in a report is what is drawn."""
    return round(float(rng.uniform(low, high)), 1)


def outline(rng: np.random.Generator, share: float) -> tuple[Lobe, ...]:
    """A slightly or (share > 0.1) clearly irregular outline."""
    orders = (3, 5, 8) if share > 0.1 else (3, 4)
    return tuple(Lobe(k, share / (i + 1), float(rng.uniform(0, 6.28))) for i, k in enumerate(orders))


def oval(rng: np.random.Generator, x_mm: float, z_mm: float, long_mm: tuple[float, float]) -> Blob:
    """An oval, wider than tall, with a long axis drawn from ``long_mm`` and sizes in whole 0.1 mm."""
    length = pick(rng, *long_mm)
    width = round(length * float(rng.uniform(0.72, 0.92)), 1)
    return Blob(x_mm, z_mm, length / 2, width / 2, angle_rad=float(rng.uniform(-0.3, 0.3)))


def cyst(kind: str, place: str, blob: Blob) -> Lesion:
    """Anechoic, thin bright wall, enhancement behind."""
    finding = Finding(kind, place, blob.x_mm, blob.z_mm, _axes_mm(blob), "anechoic", enhancement=True)
    return _lesion(finding, blob, (Layer(blob, FLUID, rim_db=4, rim_mm=0.02 * blob.a_mm + 0.3, edge_mm=0.4),))


def nodule(
    kind: str,
    place: str,
    blob: Blob,
    tissue: Tissue,
    doppler: Doppler | None,
    rim_db: float | None = None,
    rng: np.random.Generator | None = None,
) -> Lesion:
    """A solid nodule: hypoechoic or hyperechoic by the sign of ``tissue.echo_db``."""
    level: Echogenicity = "hyperechoic" if tissue.echo_db > 0 else "hypoechoic"
    shadow = tissue.attenuation > 1
    finding = Finding(kind, place, blob.x_mm, blob.z_mm, _axes_mm(blob), level, shadow, doppler=doppler)
    flows = () if rng is None else _vascularity(rng, blob, doppler)
    return _lesion(finding, blob, (Layer(blob, tissue, rim_db=rim_db, edge_mm=0.8),), flows)


def calcified(probe: Probe, height_mm: float, echo_db: float = 26.0) -> Tissue:
    """A strong reflector that takes ``SHADOW_DB`` out of the beam over its height."""
    return Tissue(echo_db, attenuation=0.5 + SHADOW_DB / (2 * probe.frequency_mhz * height_mm / 10))


def stone(probe: Probe, kind: str, place: str, centre_mm: tuple[float, float], length_mm: float) -> Lesion:
    """A strong reflector with a shadow; only its width is measured."""
    height_mm = 0.5 * length_mm
    blob = Blob(*centre_mm, length_mm / 2, height_mm / 2)
    finding = Finding(kind, place, *centre_mm, (length_mm,), "hyperechoic", shadow=True)
    layer = Layer(blob, calcified(probe, height_mm), rim_db=12, rim_mm=0.06 * length_mm, edge_mm=0.5)
    return _lesion(finding, blob, (layer,))


def _axes_mm(blob: Blob) -> tuple[float, float]:
    return round(2 * blob.a_mm, 1), round(2 * blob.b_mm, 1)


def _lesion(finding: Finding, blob: Blob, layers: tuple[Layer, ...], flows: tuple[Flow, ...] = ()) -> Lesion:
    ends = blob.axis_ends_mm()
    pairs: tuple[Ends, ...] = ((ends[0], ends[1]), (ends[2], ends[3]))
    reach = 1.35 * max(blob.a_mm, blob.b_mm)
    extent = (blob.x_mm - reach, blob.z_mm - reach, blob.x_mm + reach, blob.z_mm + reach)
    return Lesion(finding, layers, pairs[: len(finding.size_mm)], flows, extent)


def _vascularity(rng: np.random.Generator, blob: Blob, doppler: Doppler | None) -> tuple[Flow, ...]:
    """Short vessel segments around (peripheral) or within (internal) a nodule."""
    if doppler is None or doppler == "absent":
        return ()
    near, far = (1.0, 1.15) if doppler == "peripheral" else (0.15, 0.75)
    radius = 0.08 * blob.a_mm + 0.2
    flows = []
    for start in np.linspace(0, 2 * np.pi, 7, endpoint=False) + rng.uniform(0, 1):
        reach = float(rng.uniform(near, far))
        turn = start + np.array([0.0, 0.35, 0.7])
        points = [
            (
                blob.x_mm + reach * blob.a_mm * float(np.cos(t)),
                blob.z_mm + reach * blob.b_mm * float(np.sin(t)),
                radius,
            )
            for t in turn
        ]
        sign = 1 if rng.random() < 0.5 else -1
        flows.append(Flow(Tube(tuple(points)), radius, sign * float(rng.uniform(0.5, 0.9))))
    return tuple(flows)
