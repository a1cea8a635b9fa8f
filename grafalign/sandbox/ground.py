"""The land seen by a camera on the ground: rays walked through the height field, all photos of a batch at once.

For every image column a ray leaves the camera; the surfaces it crosses raise a running horizon, and each pixel shows
the first surface that rises above its line of sight (the height-field ray casting of Cohen-Or et al. 1996). What a
photo shows therefore follows from what stands before that camera, and is often not what lies under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.labels import VOID
from grafalign.sandbox.classes import GROUND, TINT_SHARE, TINTS, Material
from grafalign.sandbox.land import GSD_M, Land
from grafalign.sandbox.noise import FloatArray, hashed
from grafalign.sandbox.season import crop_state, greenness
from grafalign.sandbox.structures import HEIGHT_STEP_M, Structures

SIZE_PX = 64
FIELD_OF_VIEW_DEG = 64.0
EYE_M = 2.0
_STEPS = 72
_NEAR_M, _FAR_M = 2.5, 900.0
_BATCH = 48

M = Material
_CROP_GROUND = np.array([[0.50, 0.37, 0.26], [0.38, 0.58, 0.20], [0.84, 0.72, 0.34]], dtype=np.float32)
_PLANTS = np.zeros(len(Material), dtype=np.float32)
_PLANTS[[M.GRASS, M.LEAF, M.FRUIT_TREE, M.VINE, M.REED, M.GARDEN]] = (0.55, 0.85, 0.8, 0.8, 0.4, 0.5)
_WINTER = np.array([0.50, 0.43, 0.33], dtype=np.float32)
_CONTRAST = np.full(len(Material), 0.10, dtype=np.float32)
_CONTRAST[[M.LEAF, M.NEEDLE, M.FRUIT_TREE, M.VINE, M.REED, M.GRAVEL, M.ROCK, M.CROP, M.GARDEN]] = (
    0.34,
    0.38,
    0.30,
    0.30,
    0.34,
    0.24,
    0.26,
    0.22,
    0.26,
)
_CONTRAST[[M.SAND, M.GRASS, M.PATH, M.WATER]] = (0.12, 0.18, 0.12, 0.10)


@dataclass(frozen=True)
class Cameras:
    """P cameras; every field is an array of length P."""

    row: FloatArray
    """Position on the fine grid, in pixels."""
    col: FloatArray
    heading_deg: FloatArray
    """Clockwise from north."""
    day_of_year: npt.NDArray[np.int32]
    overcast: FloatArray
    """0 clear, 1 grey."""

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, part: slice) -> Cameras:
        return Cameras(
            self.row[part], self.col[part], self.heading_deg[part], self.day_of_year[part], self.overcast[part]
        )


def render(land: Land, structures: Structures, cameras: Cameras, seed: int) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Take the photos.

    Args:
        land: the world.
        structures: what stands on it.
        cameras: P cameras.
        seed: seed of sky, exposure and passers-by.

    Returns:
        Photos uint8 [P, 64, 64, 3], and the share of each photo's pixels (sky and the road at one's feet aside) that
        each kind fills, float32 [P, kinds].
    """
    images, shares = [], []
    for start in range(0, len(cameras), _BATCH):
        rng = np.random.default_rng((seed, start))
        image, share = _render_batch(land, structures, cameras[start : start + _BATCH], rng)
        images.append(image)
        shares.append(share)
    return np.concatenate(images), np.concatenate(shares)


def _render_batch(
    land: Land, structures: Structures, cameras: Cameras, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    count = len(cameras)
    height, width = land.classes.shape
    focal = SIZE_PX / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW_DEG) / 2)
    across = (np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2) / focal
    azimuth = np.deg2rad(cameras.heading_deg)[:, None] + np.arctan(across)[None, :]
    depth = (_NEAR_M * (_FAR_M / _NEAR_M) ** (np.arange(_STEPS) / (_STEPS - 1))).astype(np.float32)
    east, north = np.sin(azimuth).astype(np.float32), np.cos(azimuth).astype(np.float32)  # [B, columns]
    x = cameras.col[:, None, None] * GSD_M + east[..., None] * depth
    y = cameras.row[:, None, None] * GSD_M - north[..., None] * depth
    col = np.clip((x / GSD_M).astype(np.int32), 0, width - 1)
    row = np.clip((y / GSD_M).astype(np.int32), 0, height - 1)
    cell = row * width + col  # [B, columns, steps]
    material = structures.material.ravel()[cell]
    rise = structures.height.ravel()[cell].astype(np.float32) * HEIGHT_STEP_M
    rise = _silhouette(material, rise, x, y)
    base = land.elevation.ravel()[cell]
    at = np.clip(cameras.row.astype(np.int32), 0, height - 1), np.clip(cameras.col.astype(np.int32), 0, width - 1)
    eye = land.elevation[at] + EYE_M
    tangent = (base + rise - eye[:, None, None]) / depth
    horizon = np.maximum.accumulate(tangent, axis=2)
    pitch = rng.normal(0.02, 0.05, count).astype(np.float32)
    lines = (SIZE_PX / 2 - np.arange(SIZE_PX) - 0.5).astype(np.float32) / focal
    sight = lines[None, :] - pitch[:, None]  # [B, rows]
    hit = np.zeros((count, SIZE_PX, SIZE_PX), dtype=np.int32)  # [B, rows, columns]
    for step in range(_STEPS):
        hit += horizon[:, None, :, step] < sight[:, :, None]
    sky = hit == _STEPS
    hit = np.minimum(hit, _STEPS - 1)

    def pick(field: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.take_along_axis(field.transpose(0, 2, 1), hit, axis=1)

    seen = pick(material)
    tall, foot, place = pick(rise), pick(base), pick(cell)
    upright = tall > 0.75
    slope = np.broadcast_to(sight[:, :, None], hit.shape)
    reach = depth[hit]
    on_ground = np.clip((foot - eye[:, None, None]) / np.minimum(slope, -1e-4), depth[np.maximum(hit - 1, 0)], reach)
    reach = np.where(upright, reach, on_ground).astype(np.float32)
    gx = cameras.col[:, None, None] * GSD_M + east[:, None, :] * reach
    gy = cameras.row[:, None, None] * GSD_M - north[:, None, :] * reach
    z = np.clip(eye[:, None, None] + slope * reach - foot, 0, None)
    green = greenness(cameras.day_of_year.astype(np.float32))[:, None, None]
    day = cameras.day_of_year[:, None, None].astype(np.float32)
    crop = crop_state(land.parcels.ravel()[place], np.broadcast_to(day, hit.shape), land.seed)
    rgb = _paint(seen, upright, gx, gy, z, tall, crop, green, reach)
    if land.tint is not None:
        tint = land.tint.ravel()[place][..., None]
        colours = np.array([(0, 0, 0), *(t.ground for t in TINTS)], dtype=np.float32)
        rgb = np.where(tint > 0, (1 - TINT_SHARE) * rgb + TINT_SHARE * colours[tint[..., 0]], rgb).astype(np.float32)
    rgb = _air(rgb, sky, reach, slope, cameras.overcast, rng)
    rgb = _passers_by(rgb, rng)
    exposure = rng.normal(1, 0.10, (count, 1, 1, 1)) * rng.normal(1, 0.03, (count, 1, 1, 3))
    rgb = rgb * exposure.astype(np.float32) + 0.012 * rng.standard_normal(rgb.shape, dtype=np.float32)
    image = np.clip(rgb * 255, 0, 255).astype(np.uint8)

    kind = np.where(sky | (reach < 4) | (reach > 600), VOID, land.kind.ravel()[place])
    counts = [np.bincount(one.ravel(), minlength=VOID + 1)[: len(land.kinds)] for one in kind]
    share = np.stack(counts) / (SIZE_PX * SIZE_PX)
    return image, (share / np.clip(share.sum(axis=1, keepdims=True), 1e-6, None)).astype(np.float32)


def _silhouette(material: npt.NDArray[np.uint8], rise: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Give tops that are not flat their outline: spruces are pointed, crowns are round, boats carry masts."""
    along = x + 0.7 * y
    spruce = 0.55 + 0.45 * np.abs(np.mod(along / 3.5, 1) * 2 - 1)
    crown = 0.82 + 0.18 * np.sin(along / 1.7)
    mast = np.where(np.mod(along / 2.2, 1) < 0.14, 1.0, 0.25)
    rise = np.where(material == M.NEEDLE, rise * spruce, rise)
    rise = np.where((material == M.LEAF) | (material == M.FRUIT_TREE), rise * crown, rise)
    return np.where(material == M.HULL, np.maximum(rise * mast, 0.9), rise).astype(np.float32)


def _paint(
    seen: npt.NDArray[np.generic],
    upright: npt.NDArray[np.bool_],
    x: FloatArray,
    y: FloatArray,
    z: FloatArray,
    tall: FloatArray,
    crop: FloatArray,
    green: FloatArray,
    reach: FloatArray,
) -> FloatArray:
    """Colour every pixel by its material, texture and season; [B, rows, columns] -> [B, rows, columns, 3]."""
    top, side = (np.array([GROUND[m][i] for m in Material], dtype=np.float32) for i in (0, 1))
    rgb = np.where(upright[..., None], side[seen], top[seen])
    low = np.minimum(crop.astype(np.int32), 1)
    growth = _CROP_GROUND[low] + (crop - low)[..., None] * (_CROP_GROUND[low + 1] - _CROP_GROUND[low])
    rgb = np.where((seen == M.CROP)[..., None], growth, rgb)
    fade = (_PLANTS[seen] * (1 - np.broadcast_to(green, seen.shape)) * 0.75)[..., None]
    rgb = rgb * (1 - fade) + _WINTER * fade
    u = np.where(upright, x + y, x)
    v = np.where(upright, z, y)
    grain = np.clip(reach / 40, 0.3, 6)
    noise = hashed(np.floor(u / grain).astype(np.int32), np.floor(v / grain).astype(np.int32), 9) - 0.5
    rgb = np.ascontiguousarray(rgb * (1 + 2 * (_CONTRAST[seen] * noise)[..., None]), dtype=np.float32)

    def tint(where: npt.NDArray[np.bool_], colour: tuple[float, float, float], strength: float = 1.0) -> None:
        spots = np.flatnonzero(where)
        flat[spots] = flat[spots] * np.float32(1 - strength) + np.float32(strength) * np.asarray(colour, np.float32)

    flat = rgb.reshape(-1, 3)
    facade = x + y
    window = (np.mod(facade, 3.4) < 1.5) & (np.mod(z, 3.1) > 1.1) & (np.mod(z, 3.1) < 2.5)
    house = upright & (seen == M.TILE_ROOF)
    tint(house & window & (z < 0.68 * tall), (0.24, 0.27, 0.33))
    tint(house & (z > 0.68 * tall), (0.70, 0.33, 0.22))
    tint(upright & (seen == M.TOWER) & window, (0.30, 0.40, 0.52))
    tint(upright & (seen == M.TOWER) & (np.mod(z, 3.1) < 0.5), (0.50, 0.50, 0.52))
    hall = upright & (seen == M.HALL)
    tint(hall & (np.mod(facade, 2.4) < 0.5), (0.46, 0.55, 0.66))
    tint(hall & (z < 4) & (np.mod(facade, 14) < 4), (0.28, 0.28, 0.30))
    tint(upright & (seen == M.LEAF) & (z < 0.22 * tall), (0.24, 0.19, 0.13), 0.7)
    tint(upright & (seen == M.NEEDLE) & (z < 0.15 * tall), (0.22, 0.15, 0.10), 0.8)
    tint(upright & (seen == M.FRUIT_TREE) & (z < 0.3 * tall), (0.40, 0.30, 0.20), 0.8)
    tint(upright & (seen == M.FRUIT_TREE) & (noise > 0.40), (0.86, 0.22, 0.16), 0.8)
    tint(upright & (seen == M.VINE) & (np.mod(facade, 2.5) < 0.35), (0.45, 0.34, 0.24))
    tint((seen == M.PANEL) & ((np.mod(facade, 1.6) < 0.22) | (np.mod(z, 1.1) < 0.14)), (0.72, 0.75, 0.80))
    glass = upright & (seen == M.GLASS)
    tint(glass & ((np.mod(facade, 1.5) < 0.25) | (np.mod(z, 1.5) < 0.2)), (0.97, 0.97, 0.96))
    tint(glass & (z < 1.4) & (noise > -0.2), (0.36, 0.60, 0.32), 0.7)
    stand = upright & (seen == M.STAND)
    tint(stand & (np.mod(z, 2.0) < 0.9), (0.30, 0.30, 0.66), 0.8)
    tint(stand & (np.mod(facade, 7) < 0.9), (0.86, 0.86, 0.88))
    tank = upright & (seen == M.TANK)
    tint(tank & (np.mod(z, 5.0) < 0.5), (0.62, 0.60, 0.56))
    tint(tank & (np.mod(facade, 13) < 1.0), (0.45, 0.42, 0.40))
    tint((seen == M.GRAVEL) & upright & (np.mod(z, 2.2) < 0.7), (0.55, 0.46, 0.36), 0.8)
    tint((seen == M.ROCK) & (np.mod(facade + 3 * z, 9) < 1.6), (0.33, 0.31, 0.31), 0.6)
    tint((seen == M.HULL) & (z > 2.4), (0.88, 0.88, 0.86))
    tint((seen == M.HULL) & (z < 0.5), (0.15, 0.25, 0.50))
    paint = hashed(np.floor(x / 2.4).astype(np.int32), np.floor(y / 2.4).astype(np.int32), 12)
    car = seen == M.CAR
    tint(car & (paint > 0.3) & (paint < 0.55), (0.18, 0.24, 0.48))
    tint(car & (paint >= 0.55) & (paint < 0.8), (0.88, 0.88, 0.90))
    tint(car & (paint >= 0.8), (0.12, 0.12, 0.13))
    tint(car & (z > 0.9) & (z < 1.35), (0.16, 0.20, 0.24))
    tint(car & (z < 0.3), (0.08, 0.08, 0.08))
    tint((seen == M.WATER) & (np.mod(y + 0.6 * x + 2 * noise, 1.1) < 0.4), (0.45, 0.60, 0.70), 0.5)
    tint((seen == M.CROP) & (np.mod(x * 0.8 + y * 0.6, 1.5) < 0.45) & (reach < 60), (0.42, 0.33, 0.22), 0.6)
    tint((seen == M.PAVING) & ((np.mod(x, 1.0) < 0.14) | (np.mod(y, 1.0) < 0.14)), (0.48, 0.45, 0.42), 0.8)
    return rgb


def _air(
    rgb: FloatArray,
    sky: npt.NDArray[np.bool_],
    reach: FloatArray,
    slope: FloatArray,
    overcast: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """Draw the sky and let far things fade into it."""
    grey = overcast[:, None, None, None]
    blue = np.array([0.36, 0.58, 0.88], dtype=np.float32) * (1 - grey) + 0.72 * grey
    pale = np.array([0.80, 0.88, 0.95], dtype=np.float32) * (1 - grey) + 0.84 * grey
    up = np.clip(slope / 0.5, 0, 1)[..., None]
    dome = pale * (1 - up) + blue * up
    rows, cols = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
    phase = rng.uniform(0, 6.28, (len(rgb), 4, 1, 1))
    puff = np.sin(cols / 9 + phase[:, 0]) + np.sin(rows / 4 + cols / 14 + phase[:, 1])
    puff = puff + np.sin(cols / 5 - rows / 6 + phase[:, 2])
    dome = dome + 0.5 * (np.clip(puff - 1.4, 0, 1)[..., None]) * (0.97 - dome)
    haze = (1 - np.exp(-reach / 1800))[..., None]
    rgb = rgb * (1 - haze) + pale * haze
    return np.where(sky[..., None], dome, rgb).astype(np.float32)


def _passers_by(rgb: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A person or a car in front of every fifth photo: what is transient teaches nothing about the place."""
    rows, cols = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
    for i in np.flatnonzero(rng.random(len(rgb)) < 0.2):
        at, scale = rng.integers(4, SIZE_PX - 4), rng.uniform(0.6, 1.5)
        body = (np.abs(cols - at) < 3 * scale) & (rows > 38 - 8 * scale) & (rows < 40 + 14 * scale)
        head = (cols - at) ** 2 + (rows - (36 - 8 * scale)) ** 2 < (2.6 * scale) ** 2
        rgb[i][body] = rng.uniform(0.05, 0.9, 3)
        rgb[i][head] = (0.80, 0.62, 0.50)
    return rgb
