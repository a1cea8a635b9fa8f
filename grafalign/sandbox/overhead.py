"""The land seen from above on one day: reflectance with season, relief, shadows, clouds and haze."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import numpy.typing as npt

from grafalign.sandbox.classes import OVERHEAD, TINT_SHARE, TINTS, Material
from grafalign.sandbox.land import GSD_M, Land
from grafalign.sandbox.noise import FloatArray, spectral
from grafalign.sandbox.season import crop_state, greenness
from grafalign.sandbox.structures import HEIGHT_STEP_M, Structures

BANDS = ('red', 'green', 'blue', 'nir')
_CROP_COLOURS = np.array(
    [[0.19, 0.145, 0.105, 0.24], [0.07, 0.13, 0.05, 0.44], [0.30, 0.25, 0.11, 0.36]], dtype=np.float32
)
"""Bare, green and ripe crops."""


def reflectance(land: Land, structures: Structures, when: datetime) -> FloatArray:
    """Surface reflectance without clouds.

    Returns:
        Float32 [4, H, W] in `BANDS` order on the land's grid.
    """
    day = when.timetuple().tm_yday
    green = float(greenness(day))
    summer, winter = (np.array([OVERHEAD[m][i] for m in Material], dtype=np.float32) for i in (0, 1))
    table = winter + green * (summer - winter)
    shape = land.classes.shape
    light = _light(land, structures, day) * (1 + 0.05 * spectral(shape, 0.6, land.seed + 100 + day, 40))
    parcel_tint = np.random.default_rng(land.seed + 101).normal(1, 0.09, int(land.parcels.max()) + 1)
    light *= parcel_tint.astype(np.float32)[land.parcels]
    crop = structures.material == Material.CROP
    state = crop_state(land.parcels[crop], day, land.seed)
    low = np.minimum(state.astype(np.int32), 1)
    out = np.empty((len(BANDS), *shape), dtype=np.float32)
    for band in range(len(BANDS)):
        plane = table[:, band][structures.material]
        colours = _CROP_COLOURS[:, band]
        plane[crop] = colours[low] + (state - low) * (colours[low + 1] - colours[low])
        if land.tint is not None:
            mixed_in = np.array([0, *(TINT_SHARE * t.overhead[band] for t in TINTS)], dtype=np.float32)[land.tint]
            plane = np.where(land.tint > 0, (1 - TINT_SHARE) * plane + mixed_in, plane)
        out[band] = plane * light
    return out


def _light(land: Land, structures: Structures, day: int) -> FloatArray:
    """Brightness from the relief's shading and from cast shadows; the sun stands in the south-south-east."""
    elevation_rad = np.deg2rad(24 + 38 * float(greenness(day)))
    east, north = 0.42, -0.91
    down, right = np.gradient(land.elevation, GSD_M)
    shade = np.sin(elevation_rad) - np.cos(elevation_rad) * (right * east - down * north)
    light = np.clip(0.35 + 0.65 * shade / np.sin(elevation_rad), 0.3, 1.5).astype(np.float32)
    height = structures.height.astype(np.float32) * HEIGHT_STEP_M
    shadow = np.zeros(height.shape, dtype=bool)
    drop = GSD_M * np.tan(elevation_rad)
    for step in range(1, 9):
        shifted = np.roll(height, (round(north * step), round(-east * step)), axis=(0, 1))
        shadow |= shifted - step * drop > height
    light[shadow] *= 0.45
    return light


def clouds(shape: tuple[int, int], cover: float, seed: int) -> FloatArray:
    """Opacity in [0, 1] of a cloud field that covers about the given share of the land."""
    if cover <= 0:
        return np.zeros(shape, dtype=np.float32)
    field = spectral(shape, 1.5, seed, 250)
    threshold = np.quantile(field[::8, ::8], 1 - cover)
    return np.clip((field - threshold) / 0.35, 0, 1).astype(np.float32)


def through_the_air(surface: FloatArray, cloud: FloatArray, haze: float, seed: int) -> FloatArray:
    """Put haze, clouds, their shadows and sensor noise between the land and the sensor; changes `surface`."""
    rng = np.random.default_rng(seed)
    shadow = np.roll(cloud, (-60, -30), axis=(0, 1))
    for band, scatter in enumerate((0.5, 0.75, 1.0, 0.2)):
        plane = surface[band]
        plane *= 1 - 0.5 * shadow
        plane *= 1 - haze * scatter
        plane += 0.25 * haze * scatter
        plane += cloud * (0.72 - plane)
        plane *= rng.normal(1, 0.004, plane.shape[1]).astype(np.float32)  # detector striping
        plane += 0.004 * rng.standard_normal(plane.shape, dtype=np.float32)
    return surface


def to_counts(surface: FloatArray, scale: float, offset: float) -> npt.NDArray[np.uint16]:
    """Reflectance to uint16 counts; 0 is kept for nodata."""
    return np.clip(np.rint((surface - offset) / scale), 1, 65535).astype(np.uint16)


def to_bytes(surface: FloatArray) -> npt.NDArray[np.uint8]:
    """Reflectance to the stretched 8-bit values of an aerial photograph; 0 is kept for nodata."""
    return np.clip(255 * (np.clip(surface, 0, 1) / 0.55) ** 0.6, 1, 255).astype(np.uint8)
