"""Implicit shapes in physical space: x_mm to the right, z_mm into the body, both from the probe's centre.

Shape legend: R depth samples, L scan lines (or any two axes: the functions work elementwise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class Shape(Protocol):
    """Anything with a signed distance in mm: negative inside, first-order exact near the boundary."""

    def distance_mm(self, x_RL: FloatArray, z_RL: FloatArray) -> FloatArray:
        """Signed distance of each point, in mm."""
        ...


@dataclass(frozen=True)
class Lobe:
    """One harmonic of an irregular outline: ``share`` of the radius, ``order`` bumps around."""

    order: int
    share: float
    phase_rad: float


@dataclass(frozen=True)
class Blob:
    """An ellipse with half axes a (along ``angle_rad``) and b, optionally bent (bean) or lobulated."""

    x_mm: float
    z_mm: float
    a_mm: float
    b_mm: float
    angle_rad: float = 0.0
    bend_per_mm: float = 0.0
    lobes: tuple[Lobe, ...] = ()

    def distance_mm(self, x_RL: FloatArray, z_RL: FloatArray) -> FloatArray:
        """(rho^2 - 1) / |grad rho^2|, rho being the elliptic radius."""
        dx, dz = x_RL - np.float32(self.x_mm), z_RL - np.float32(self.z_mm)
        cos, sin = np.float32(np.cos(self.angle_rad)), np.float32(np.sin(self.angle_rad))
        u, v = cos * dx + sin * dz, cos * dz - sin * dx
        if self.bend_per_mm:
            v = v + np.float32(self.bend_per_mm) * u * u
        ua, vb = u / np.float32(self.a_mm), v / np.float32(self.b_mm)
        rho2 = ua * ua + vb * vb
        if self.lobes:
            bumps = self._bumps(np.arctan2(vb, ua))
            rho2 = rho2 / (bumps * bumps)
        slope = np.hypot(ua / np.float32(self.a_mm), vb / np.float32(self.b_mm))
        distance = (rho2 - 1) / (2 * slope + np.float32(1e-5))
        return distance.astype(np.float32, copy=False)

    def _bumps(self, phi_RL: FloatArray) -> FloatArray:
        """Radius of the outline at each polar angle, as a share of the plain ellipse's."""
        bumps_RL = np.ones_like(phi_RL)
        for lobe in self.lobes:
            bumps_RL += np.float32(lobe.share) * np.cos(
                np.float32(lobe.order) * phi_RL + np.float32(lobe.phase_rad)
            )
        return bumps_RL

    def axis_ends_mm(self) -> tuple[tuple[float, float], ...]:
        """End points (x, z) of the a axis, then of the b axis; where calipers are put."""
        cos, sin = float(np.cos(self.angle_rad)), float(np.sin(self.angle_rad))
        along, across = (cos * self.a_mm, sin * self.a_mm), (-sin * self.b_mm, cos * self.b_mm)
        return tuple(
            (self.x_mm + sign * dx, self.z_mm + sign * dz) for dx, dz in (along, across) for sign in (-1, 1)
        )


@dataclass(frozen=True)
class Band:
    """The layer between two parallel curves z = top + tilt*x + curve*(x-x0)^2 + wave; a line if thin."""

    top_mm: float
    bottom_mm: float
    tilt: float = 0.0
    curve_per_mm: float = 0.0
    centre_x_mm: float = 0.0
    wave_mm: float = 0.0
    wavelength_mm: float = 20.0
    phase_rad: float = 0.0

    def distance_mm(self, x_RL: FloatArray, z_RL: FloatArray) -> FloatArray:
        """Distance along z to the nearer of the two curves."""
        x = x_RL - np.float32(self.centre_x_mm)
        depth = z_RL - np.float32(self.tilt) * x - np.float32(self.curve_per_mm) * x * x
        if self.wave_mm:
            turn = np.float32(2 * np.pi / self.wavelength_mm)
            depth = depth - np.float32(self.wave_mm) * np.sin(turn * x + np.float32(self.phase_rad))
        distance: FloatArray = np.maximum(self.top_mm - depth, depth - self.bottom_mm).astype(np.float32)
        return distance


@dataclass(frozen=True)
class Tube:
    """A tube around a polyline of (x_mm, z_mm, radius_mm) points."""

    points: tuple[tuple[float, float, float], ...]

    def distance_mm(self, x_RL: FloatArray, z_RL: FloatArray) -> FloatArray:
        """Distance to the nearest segment minus the radius interpolated along it."""
        nearest = np.full(np.shape(x_RL), np.float32(1e4))
        for (x0, z0, r0), (x1, z1, r1) in zip(self.points, self.points[1:], strict=False):
            dx, dz = np.float32(x1 - x0), np.float32(z1 - z0)
            px, pz = x_RL - np.float32(x0), z_RL - np.float32(z0)
            t = np.clip((px * dx + pz * dz) / (dx * dx + dz * dz), 0, 1)
            reach = np.hypot(px - t * dx, pz - t * dz) - (r0 + np.float32(r1 - r0) * t)
            np.minimum(nearest, reach, out=nearest)
        return nearest


@dataclass(frozen=True)
class Outside:
    """Everything that is outside of another shape."""

    shape: Shape

    def distance_mm(self, x_RL: FloatArray, z_RL: FloatArray) -> FloatArray:
        """The negated distance."""
        return -self.shape.distance_mm(x_RL, z_RL)


@dataclass(frozen=True)
class Common:
    """The part that two shapes share."""

    first: Shape
    second: Shape

    def distance_mm(self, x_RL: FloatArray, z_RL: FloatArray) -> FloatArray:
        """The larger of both distances."""
        distance: FloatArray = np.maximum(
            self.first.distance_mm(x_RL, z_RL), self.second.distance_mm(x_RL, z_RL)
        )
        return distance
