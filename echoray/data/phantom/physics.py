"""A first-order B-mode model: scatterers, separable point spread, envelope, log compression, scan conversion.

For sample r of scan line l with round-trip phase 2kr:

    scatter   b = (10^(echo/20) n + s) T exp(-2jkr),   n ~ N(0, 1) independent scatterers, s specular rims
    travel    T = 10^(-2 f integral(attenuation - 0.5 dB/cm/MHz) dr / 20)   (time gain compensation: 0.5)
    point     B = b * h_axial(r) * h_lateral(l)   (Gaussians; in beam space, so a fan's blur grows with depth)
    envelope  |B|: b carries the carrier's phase, so B is the analytic signal of the echo shifted to baseband
    display   g = clip(level + (20 log10 |B| + gain) / range, 0, 1), then polar or linear scan conversion

Shadows and enhancement come out of T: a stone attenuates more than the compensation assumes, fluid less.
With many scatterers per resolution cell |B| is Rayleigh distributed (mean / std = 1.91) in even tissue.
It is made for tests and demonstrations, not for clinical claims. Linear model after Bamber and Dickinson,
Phys. Med. Biol. 25 (1980) 463.

Shape legend: R depth samples, L scan lines, H, W pixels of a panel or frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, zoom

from echoray.data.phantom.scene import Flow, Layer, Scene, Tissue, View
from echoray.data.phantom.shapes import FloatArray

AXIAL_SIGMA_WAVELENGTHS = 0.9
LATERAL_SIGMA_LINES = 1.0
DYNAMIC_RANGE_DB = 58.0
PARENCHYMA_LEVEL = 0.42  # grey value of 0 dB, as a share of white
NOISE_FLOOR_DB = -31.0
COMPENSATED = 0.5  # dB/(cm MHz)
MAX_ENHANCEMENT_DB = 7.5


def simulate(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render the views of a scene without any annotation: uint8 RGB (H, W, 3), black outside of the field."""
    image_HW3 = np.zeros((scene.height, scene.width, 3), np.uint8)
    for view in scene.views:
        grey_RL = compress(envelope(view, rng), view.gain_db)
        grey_HW, seen_HW = _scan_convert(grey_RL, view)
        panel_HW3 = np.repeat((grey_HW * 255).astype(np.uint8)[..., None], 3, axis=2)
        if view.colour:
            _paint_flow(panel_HW3, view, seen_HW, rng)
        box = view.panel.box
        image_HW3[box.y0 : box.y1, box.x0 : box.x1] = panel_HW3
    return image_HW3


def envelope(view: View, rng: np.random.Generator) -> FloatArray:
    """Echo envelope before compression, (R, L); 1.0 is the root mean square of normal parenchyma."""
    probe = view.anatomy.probe
    echo_db_RL, attenuation_RL, specular_RL = _tissue_maps(view, rng)
    excess_db = 2 * probe.frequency_mhz * (probe.sample_mm / 10) * (attenuation_RL - np.float32(COMPENSATED))
    travel_db_RL = np.clip(-np.cumsum(excess_db, axis=0, dtype=np.float32), -70, MAX_ENHANCEMENT_DB)
    shape = probe.grid_shape
    echo_RL = _amplitude(echo_db_RL) * rng.standard_normal(shape, np.float32)
    phase_R1 = (1.8 * np.pi * np.arange(shape[0]))[:, None]  # 2kr with r = 0.45 wavelengths per step
    carrier_R1 = np.exp(-1j * phase_R1).astype(np.complex64)
    travel_RL = _amplitude(travel_db_RL)
    noise = (
        _point_spread(echo_RL * travel_RL * carrier_R1.real),
        _point_spread(echo_RL * travel_RL * carrier_R1.imag),
    )
    unit = np.float32(_speckle_gain())
    real_RL = noise[0] / unit + _point_spread(specular_RL * travel_RL)
    imag_RL = noise[1] / unit
    floor = _amplitude(np.float32(NOISE_FLOOR_DB))
    hiss_RL = floor * np.abs(rng.standard_normal(shape, np.float32))
    return np.hypot(np.hypot(real_RL, imag_RL), hiss_RL)


def compress(envelope_RL: FloatArray, gain_db: float = 0.0) -> FloatArray:
    """Log compression to [0, 1] over the dynamic range; 0 dB lands on ``PARENCHYMA_LEVEL``."""
    db_RL = 20 * np.log10(envelope_RL + np.float32(1e-6)) + np.float32(gain_db)
    grey_RL: FloatArray = np.clip(PARENCHYMA_LEVEL + db_RL / np.float32(DYNAMIC_RANGE_DB), 0, 1)
    return grey_RL


def _tissue_maps(view: View, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Echo level (dB), attenuation (dB/cm/MHz) and specular amplitude on the beam grid."""
    anatomy = view.anatomy
    x_RL, z_RL = anatomy.probe.beam_points()
    x_RL = x_RL + np.float32(view.shift_mm)
    grain_RL = _grain(x_RL.shape, rng)
    echo_RL = _texture(anatomy.background, z_RL, grain_RL)
    attenuation_RL = np.full_like(echo_RL, anatomy.background.attenuation)
    specular_RL = np.zeros_like(echo_RL)
    for layer in anatomy.layers:
        _paint(layer, (x_RL, z_RL, grain_RL), echo_RL, attenuation_RL, specular_RL)
    return echo_RL, attenuation_RL, specular_RL


def _paint(
    layer: Layer,
    grid: tuple[FloatArray, FloatArray, FloatArray],
    echo_RL: FloatArray,
    attenuation_RL: FloatArray,
    specular_RL: FloatArray,
) -> None:
    x_RL, z_RL, grain_RL = grid
    distance_RL = layer.shape.distance_mm(x_RL, z_RL)
    weight_RL = np.clip(np.float32(0.5) - distance_RL / np.float32(layer.edge_mm), 0, 1)
    echo_RL += weight_RL * (_texture(layer.tissue, z_RL, grain_RL) - echo_RL)
    attenuation_RL += weight_RL * (np.float32(layer.tissue.attenuation) - attenuation_RL)
    specular_RL *= 1 - weight_RL
    if layer.rim_db is not None:
        # A mirror-like surface answers best where the beam meets it at a right angle.
        facing_RL = np.abs(np.gradient(distance_RL, axis=0))
        facing_RL = np.minimum(facing_RL / np.float32(np.abs(z_RL[1, z_RL.shape[1] // 2])), 1)
        rim_RL = np.exp(-np.square(distance_RL / np.float32(layer.rim_mm)))
        level = _amplitude(np.float32(layer.rim_db)) * (1 + np.float32(0.25) * np.clip(grain_RL, -2, 2))
        np.maximum(
            specular_RL, level * rim_RL * (np.float32(0.2) + np.float32(0.8) * facing_RL**2), out=specular_RL
        )


def _texture(tissue: Tissue, z_RL: FloatArray, grain_RL: FloatArray) -> FloatArray:
    echo_RL = np.float32(tissue.echo_db) + np.float32(tissue.grain_db) * grain_RL
    if tissue.stripe_db:
        turn = np.float32(2 * np.pi / tissue.stripe_mm)
        echo_RL = echo_RL + np.float32(tissue.stripe_db) * np.sin(turn * z_RL + 2 * grain_RL)
    return echo_RL


def _grain(shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """A smooth random field of unit variance for structure larger than the speckle."""
    coarse = gaussian_filter(rng.standard_normal((48, 32), np.float32), 1.0)
    coarse /= coarse.std()
    field: FloatArray = zoom(coarse, (shape[0] / 48, shape[1] / 32), order=1, grid_mode=True, mode="nearest")
    return field


def _amplitude(db: FloatArray | np.float32) -> FloatArray:
    return np.exp(db * np.float32(np.log(10) / 20))


def _point_spread(signal_RL: FloatArray) -> FloatArray:
    axial_RL = gaussian_filter1d(
        signal_RL, AXIAL_SIGMA_WAVELENGTHS / 0.45, axis=0, mode="constant", truncate=3
    )
    blurred: FloatArray = gaussian_filter1d(axial_RL, LATERAL_SIGMA_LINES, axis=1, mode="nearest", truncate=3)
    return blurred


def _speckle_gain() -> float:
    """Root mean square that unit white scatterers have after the point spread (Gaussian kernels' energy)."""
    energy = 1 / (2 * np.sqrt(np.pi))
    return float(np.sqrt(energy**2 / (AXIAL_SIGMA_WAVELENGTHS / 0.45 * LATERAL_SIGMA_LINES)))


def _scan_convert(grey_RL: FloatArray, view: View) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Beam grid to the panel's pixels (bilinear), and which pixels lie in the field."""
    sample_HW, line_HW = view.anatomy.probe.to_beam(*view.pixel_points)
    num_samples, num_lines = grey_RL.shape
    seen_HW = (sample_HW >= 0) & (sample_HW <= num_samples - 1) & (line_HW >= 0) & (line_HW <= num_lines - 1)
    grey_HW = np.zeros(seen_HW.shape, np.float32)
    at_2N = np.stack([sample_HW[seen_HW], line_HW[seen_HW]])
    grey_HW[seen_HW] = map_coordinates(grey_RL, at_2N, order=1, mode="nearest", prefilter=False)
    return grey_HW, seen_HW


def _paint_flow(
    panel_HW3: NDArray[np.uint8], view: View, seen_HW: NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """Overwrite the pixels with flow inside the colour box: red towards the probe, blue away from it."""
    box_mm = view.anatomy.flow_box_mm
    if box_mm is None:
        return
    x_HW, z_HW = view.pixel_points
    x_HW = x_HW + np.float32(view.shift_mm)
    inside_HW = seen_HW & (x_HW > box_mm[0]) & (x_HW < box_mm[2]) & (z_HW > box_mm[1]) & (z_HW < box_mm[3])
    shape = (inside_HW.shape[0] // 4 + 1, inside_HW.shape[1] // 4 + 1)
    patch = gaussian_filter(rng.standard_normal(shape, np.float32), 1.0) * np.float32(3.5)
    mottle_HW = zoom(patch, 4, order=1)[: inside_HW.shape[0], : inside_HW.shape[1]]
    for flow in view.anatomy.flows:
        speed_HW, shown_HW = _speed(flow, x_HW, z_HW, mottle_HW)
        shown_HW &= inside_HW
        panel_HW3[shown_HW] = _colour(speed_HW[shown_HW])


def _speed(
    flow: Flow, x_HW: FloatArray, z_HW: FloatArray, mottle_HW: FloatArray
) -> tuple[FloatArray, NDArray[np.bool_]]:
    depth_HW = np.clip(-flow.shape.distance_mm(x_HW, z_HW) / np.float32(flow.radius_mm), 0, 1)
    speed_HW = np.float32(flow.velocity) * (1 - np.square(1 - depth_HW)) * (1 + np.float32(0.12) * mottle_HW)
    if flow.turbulent:
        # Beyond the scale the velocity wraps around: the mosaic of a narrow place.
        speed_HW = (speed_HW * np.float32(1.9) + np.float32(0.5) * mottle_HW + 1) % 2 - 1
    shown_HW = (depth_HW > 0.12) & (np.abs(speed_HW) > 0.08)
    return speed_HW, shown_HW


def _colour(speed_N: FloatArray) -> NDArray[np.uint8]:
    strength = np.clip(np.abs(speed_N), 0, 1)
    main = (90 + 165 * strength).astype(np.uint8)
    second = (190 * np.square(strength)).astype(np.uint8)
    zero = np.zeros_like(main)
    towards = np.stack([main, second, zero], axis=-1)
    away = np.stack([zero, second, main], axis=-1)
    return np.where((speed_N > 0)[:, None], towards, away)
