"""What is scanned and how: tissues, probe, panel, and the scene that ``physics.simulate`` renders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from echoray.data.phantom.shapes import FloatArray, Shape
from echoray.types import Box, System

SOUND_MM_PER_US = 1.54  # mean speed of sound in soft tissue

Echogenicity = Literal["anechoic", "hypoechoic", "isoechoic", "hyperechoic"]
Doppler = Literal["absent", "peripheral", "internal", "turbulent"]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Tissue:
    """Acoustic properties; ``echo_db`` is relative to normal parenchyma."""

    echo_db: float
    attenuation: float = 0.5  # dB/(cm MHz), one way; 0.5 is what the time gain compensation assumes
    grain_db: float = 0.0  # strength of structure larger than the speckle
    stripe_db: float = 0.0  # strength of parallel fibres (muscle)
    stripe_mm: float = 2.0


@dataclass(frozen=True)
class Layer:
    """A shape filled with a tissue, painted over the layers before it; ``rim_db`` adds a specular outline."""

    shape: Shape
    tissue: Tissue
    rim_db: float | None = None
    rim_mm: float = 0.6
    edge_mm: float = 0.5


@dataclass(frozen=True)
class Flow:
    """Blood flow for the colour mode: parabolic profile inside the shape, > 0 is towards the probe."""

    shape: Shape
    radius_mm: float
    velocity: float  # share of the colour scale, -1 to 1
    turbulent: bool = False


@dataclass(frozen=True)
class Probe:
    """A transducer: curved (``radius_mm`` > 0, lines fan out over +-``half_angle_rad``) or linear."""

    name: str
    frequency_mhz: float
    depth_mm: float
    radius_mm: float = 0.0
    half_angle_rad: float = 0.0
    half_width_mm: float = 0.0
    num_lines: int = 160

    @property
    def wavelength_mm(self) -> float:
        """Speed of sound over frequency."""
        return SOUND_MM_PER_US / self.frequency_mhz

    @property
    def sample_mm(self) -> float:
        """Depth step: 0.45 wavelengths, so that the round-trip phase takes ten even steps per turn."""
        return 0.45 * self.wavelength_mm

    @property
    def is_linear(self) -> bool:
        """Whether the scan lines are parallel."""
        return self.half_width_mm > 0

    @property
    def top_mm(self) -> float:
        """Depth of the highest image point; negative for a curved face, whose centre is at 0."""
        return 0.0 if self.is_linear else self.radius_mm * (float(np.cos(self.half_angle_rad)) - 1)

    @property
    def field_width_mm(self) -> float:
        """Width of the image field at its widest."""
        if self.is_linear:
            return 2 * self.half_width_mm
        return 2 * (self.radius_mm + self.depth_mm) * float(np.sin(self.half_angle_rad))

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Depth samples and scan lines."""
        return int(np.ceil(self.depth_mm / self.sample_mm)), self.num_lines

    def beam_points(self) -> tuple[FloatArray, FloatArray]:
        """x_RL and z_RL in mm of each sample on each scan line."""
        num_samples, num_lines = self.grid_shape
        r_R1 = (np.arange(num_samples, dtype=np.float32) * np.float32(self.sample_mm))[:, None]
        across_1L = np.linspace(-1, 1, num_lines, dtype=np.float32)[None, :]
        if self.is_linear:
            ones_RL = np.ones((num_samples, num_lines), np.float32)
            return across_1L * np.float32(self.half_width_mm) * ones_RL, r_R1 * ones_RL
        angle_1L = across_1L * np.float32(self.half_angle_rad)
        radius_R1 = r_R1 + np.float32(self.radius_mm)
        return radius_R1 * np.sin(angle_1L), radius_R1 * np.cos(angle_1L) - np.float32(self.radius_mm)

    def to_beam(self, x_mm: FloatArray, z_mm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Fractional (sample, line) of physical points; outside of the field it leaves the grid."""
        if self.is_linear:
            depth, across = z_mm, x_mm / np.float32(self.half_width_mm)
        else:
            below = z_mm + np.float32(self.radius_mm)
            depth = np.hypot(x_mm, below) - np.float32(self.radius_mm)
            across = np.arctan2(x_mm, below) / np.float32(self.half_angle_rad)
        return depth / np.float32(self.sample_mm), (across + 1) * np.float32((self.num_lines - 1) / 2)


@dataclass(frozen=True)
class Panel:
    """Where a view lies in the frame: isotropic scale, and the pixel of (x, z) = (0, 0)."""

    box: Box
    mm_per_px: float
    origin_x_px: float
    origin_y_px: float

    def to_px(self, x_mm: float, z_mm: float) -> tuple[float, float]:
        """Pixel (column, row) of a physical point."""
        return self.origin_x_px + x_mm / self.mm_per_px, self.origin_y_px + z_mm / self.mm_per_px


def fit_panel(probe: Probe, area: Box) -> Panel:
    """The largest panel for ``probe`` inside ``area``, centred at its top; ``box`` is the field's own box."""
    height_mm = probe.depth_mm - probe.top_mm
    mm_per_px = max(height_mm / (area.y1 - area.y0), probe.field_width_mm / (area.x1 - area.x0))
    centre_x, half_px = (area.x0 + area.x1) / 2, probe.field_width_mm / mm_per_px / 2
    bottom = area.y0 + height_mm / mm_per_px
    box = Box(
        max(area.x0, int(np.floor(centre_x - half_px))),
        area.y0,
        min(area.x1, int(np.ceil(centre_x + half_px))),
        min(area.y1, int(np.ceil(bottom))),
    )
    return Panel(box, mm_per_px, centre_x, area.y0 - probe.top_mm / mm_per_px)


@dataclass(frozen=True)
class Finding:
    """One abnormality as ground truth; ``size_mm`` holds the measured axes, longest first."""

    kind: str
    place: str
    x_mm: float
    z_mm: float
    size_mm: tuple[float, ...]
    echogenicity: Echogenicity
    shadow: bool = False
    enhancement: bool = False
    doppler: Doppler | None = None
    percent: int | None = None  # stenosis by diameter


@dataclass(frozen=True)
class Anatomy:
    """A system's tissues with its findings; ``calipers_mm`` are pairs of (x, z) ends, one per size."""

    system: System
    probe: Probe
    background: Tissue
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    calipers_mm: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    side: Side | None = None
    flows: tuple[Flow, ...] = ()
    flow_box_mm: tuple[float, float, float, float] | None = None  # x0, z0, x1, z1


@dataclass(frozen=True)
class View:
    """An anatomy seen in a panel; ``shift_mm`` moves the probe sideways, ``colour`` shows the flows."""

    anatomy: Anatomy
    panel: Panel
    shift_mm: float = 0.0
    gain_db: float = 0.0
    colour: bool = False

    @cached_property
    def pixel_points(self) -> tuple[FloatArray, FloatArray]:
        """x and z in mm (probe coordinates) of every pixel centre of the panel's box."""
        box, panel = self.panel.box, self.panel
        x_1W = (np.arange(box.x0, box.x1, dtype=np.float32) - np.float32(panel.origin_x_px))[None, :]
        z_H1 = (np.arange(box.y0, box.y1, dtype=np.float32) - np.float32(panel.origin_y_px))[:, None]
        shape = (box.y1 - box.y0, box.x1 - box.x0)
        scale = np.float32(panel.mm_per_px)
        return np.broadcast_to(x_1W * scale, shape), np.broadcast_to(z_H1 * scale, shape)


@dataclass(frozen=True)
class Scene:
    """One frame: its size and one view, or two side by side."""

    width: int
    height: int
    views: tuple[View, ...]
