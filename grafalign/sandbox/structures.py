"""What stands on the land: for every 5 m cell a material and a height above the ground.

Both renderers look at these two rasters: the satellite sees roofs, crowns and shadows, a camera on the ground sees
facades, trunks and the horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grafalign.sandbox.classes import CLASS_ID, Material
from grafalign.sandbox.land import Land, LandObject
from grafalign.sandbox.noise import FloatArray, hashed, spectral
from grafalign.sandbox.settlement import LANE, SHORE

M = Material
HEIGHT_STEP_M = 0.5
"""One count of the height raster."""


@dataclass(frozen=True)
class Structures:
    """Materials and heights on the fine grid, [H, W]."""

    material: npt.NDArray[np.uint8]
    height: npt.NDArray[np.uint8]
    """In steps of 0.5 m."""


def build(land: Land) -> Structures:
    """Fill every class's area with its materials."""
    shape = land.classes.shape
    material = np.full(shape, M.GRASS, dtype=np.uint8)
    height = np.zeros(shape, dtype=np.uint8)
    rough = spectral(shape, 0.9, land.seed + 80, 60)
    flat = land.classes.ravel()
    for name, layout in _AREAS.items():
        pixels = np.flatnonzero(flat == CLASS_ID[name])
        if not pixels.size:
            continue
        rows, cols = (v.astype(np.int32) for v in np.divmod(pixels, shape[1]))
        turn = hashed(land.parcels.ravel()[pixels], np.zeros_like(rows), land.seed) * np.float32(np.pi)
        if name in ('suburb', 'old town', 'tower blocks', 'warehouses'):
            turn = _town_bearing(land, rows, cols)
        u = cols * np.cos(turn) + rows * np.sin(turn)
        v = rows * np.cos(turn) - cols * np.sin(turn)
        spot = hashed(rows, cols, land.seed + 81)
        stuff, tall = layout(u.astype(np.float32), v.astype(np.float32), spot, rough.ravel()[pixels])
        material.ravel()[pixels] = stuff
        height.ravel()[pixels] = np.clip(tall / HEIGHT_STEP_M, 0, 255).astype(np.uint8)
    for thing in land.objects:
        window, along, across = thing.local(shape)
        here = land.classes[window] == CLASS_ID[thing.kind]
        rows, cols = (v.astype(np.int32) for v in np.mgrid[window])
        stuff, tall = _OBJECTS[thing.kind](thing, along, across, hashed(rows, cols, land.seed + 82))
        material[window][here] = stuff[here]
        height[window][here] = np.clip(tall[here] / HEIGHT_STEP_M, 0, 255).astype(np.uint8)
    way = land.roads > 0
    material[way] = np.where(np.isin(land.roads[way], (LANE, SHORE)), M.PATH, M.ASPHALT)
    height[way] = 0
    return Structures(material, height)


def _town_bearing(land: Land, rows: npt.NDArray[np.int32], cols: npt.NDArray[np.int32]) -> FloatArray:
    """The bearing of the nearest town's streets, so that houses line them."""
    best = np.full(rows.shape, np.inf, dtype=np.float32)
    turn = np.zeros(rows.shape, dtype=np.float32)
    for town in land.towns:
        distance = np.hypot(rows - town.row, cols - town.col).astype(np.float32) / town.radius_px
        nearer = distance < best
        best[nearer], turn[nearer] = distance[nearer], town.bearing_rad
    return turn


Layout = tuple[npt.NDArray[np.uint8], FloatArray]
Area = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], Layout]
Plan = Callable[[LandObject, FloatArray, FloatArray, FloatArray], Layout]


def _choose(
    like: FloatArray, ground: Material, *layers: tuple[npt.NDArray[np.bool_], Material, FloatArray | float]
) -> Layout:
    """Paint layers, the last on top, over a flat ground."""
    stuff = np.full(like.shape, ground, dtype=np.uint8)
    tall = np.zeros(like.shape, dtype=np.float32)
    for where, material, metres in layers:
        stuff[where] = material
        tall[where] = metres[where] if isinstance(metres, np.ndarray) else metres
    return stuff, tall


def _water(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.WATER)


def _broadleaf(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.GRASS, (spot > 0.12, M.LEAF, 11 + 6 * spot + 2 * rough))


def _conifer(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.GRASS, (spot > 0.06, M.NEEDLE, 17 + 8 * spot + 2 * rough))


def _meadow(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.GRASS, (spot > 0.992, M.LEAF, 6.0))


def _cropland(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.CROP, (np.mod(u, 9) < 0.8, M.SOIL, 0.0))


def _orchard(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    tree = (np.mod(u, 2.6) < 1.4) & (np.mod(v, 2.6) < 1.4) & (spot > 0.05)
    return _choose(u, M.GRASS, (tree, M.FRUIT_TREE, 3.5 + spot))


def _vineyard(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.SOIL, ((np.mod(u, 2.2) < 1.1) & (spot > 0.04), M.VINE, 1.9))


def _beach(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.SAND, (spot > 0.995, M.ROCK, 1.0))


def _rock(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    layers = ((rough > 0.3, M.ROCK, 2 + 5 * np.clip(rough, 0, 2)), (spot > 0.985, M.NEEDLE, 7.0))
    return _choose(u, M.ROCK, *layers)


def _marsh(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    return _choose(u, M.REED, (spot > -1, M.REED, 1.4 + spot), (rough > 0.55, M.WATER, 0.0))


def _suburb(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    pick = hashed(np.floor(u / 6).astype(np.int32), np.floor(v / 7).astype(np.int32), 3)
    house = (np.mod(u, 6) < 2.6) & (np.mod(v, 7) < 3) & (pick > 0.12)
    layers = ((spot > 0.84, M.LEAF, 5 + 3 * spot), (house, M.TILE_ROOF, 5.5 + 2.5 * pick))
    return _choose(u, M.GARDEN, *layers)


def _old_town(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    built = (np.mod(u, 8.5) < 6.6) & (np.mod(v, 14.5) < 12.5)
    pick = hashed(np.floor(u / 3).astype(np.int32), np.floor(v / 3).astype(np.int32), 4)
    return _choose(u, M.PAVING, (built & (pick > 0.1), M.TILE_ROOF, 10 + 5 * pick))


def _tower_blocks(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    pick = hashed(np.floor(u / 15).astype(np.int32), np.floor(v / 20).astype(np.int32), 5)
    tower = (np.mod(u, 15) < 5) & (np.mod(v, 20) < 11) & (pick > 0.08)
    yard = (np.mod(u, 15) > 10) & (np.mod(v, 20) < 14)
    return _choose(u, M.GRASS, (spot > 0.93, M.LEAF, 7.0), (yard, M.ASPHALT, 0.0), (tower, M.TOWER, 28 + 26 * pick))


def _warehouses(u: FloatArray, v: FloatArray, spot: FloatArray, rough: FloatArray) -> Layout:
    pick = hashed(np.floor(u / 27).astype(np.int32), np.floor(v / 20).astype(np.int32), 6)
    hall = (np.mod(u, 27) < 21) & (np.mod(v, 20) < 13) & (pick > 0.07)
    return _choose(u, M.CONCRETE, (spot > 0.985, M.CAR, 3.0), (hall, M.HALL, 8 + 4 * pick))


_AREAS: dict[str, Area] = {
    'water': _water,
    'broadleaf forest': _broadleaf,
    'conifer forest': _conifer,
    'meadow': _meadow,
    'cropland': _cropland,
    'orchard': _orchard,
    'vineyard': _vineyard,
    'beach': _beach,
    'bare rock': _rock,
    'marsh': _marsh,
    'suburb': _suburb,
    'old town': _old_town,
    'tower blocks': _tower_blocks,
    'warehouses': _warehouses,
}


def _oil_tanks(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    tank = np.hypot(np.mod(a, 13) - 6.5, np.mod(b, 13) - 6.5) < 4.6
    return _choose(a, M.GRAVEL, (tank, M.TANK, 14.0))


def _stadium(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    ring = np.hypot(2 * a / thing.length_px, 2 * b / thing.width_px)
    stand = (ring > 0.58) & (ring < 0.97)
    lines = (np.abs(a) < 0.7) & (ring < 0.55)
    return _choose(a, M.PITCH, (lines, M.MARKING, 0.0), (stand, M.STAND, 8 + 34 * np.clip(ring - 0.55, 0, 1)))


def _solar_farm(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    return _choose(a, M.GRASS, ((np.mod(b, 3.0) < 2.0) & (np.mod(a, 22) > 1.5), M.PANEL, 2.2))


def _runway(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    strip = (np.abs(b) < thing.width_px * 0.4) & (np.abs(a) < thing.length_px * 0.48)
    marks = (np.abs(b) < 0.8) & (np.mod(a, 8) < 5) & strip
    ends = (np.abs(a) > thing.length_px * 0.42) & (np.mod(b, 2.4) < 1.2) & strip
    return _choose(a, M.GRASS, (strip, M.CONCRETE, 0.0), (marks | ends, M.MARKING, 0.0))


def _marina(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    pier = np.mod(a, 10) < 1.2
    quay = np.abs(b) > thing.width_px / 2 - 2.5
    boat = (np.mod(a, 10) > 1.8) & (np.mod(a, 10) < 8.6) & (np.mod(b, 3) < 1.3) & (spot > 0.2) & ~quay
    boat &= ~((np.mod(a, 10) > 4.2) & (np.mod(a, 10) < 6.2))
    return _choose(a, M.WATER, (boat, M.HULL, 4 + 6 * spot), (pier | quay, M.CONCRETE, 0.5))


def _roundabout(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    radius = np.hypot(a, b) / (thing.length_px / 2)
    arms = (np.abs(a) < 1.6) | (np.abs(b) < 1.6)
    ring = (radius > 0.46) & (radius < 0.84)
    kerb = (radius > 0.38) & (radius <= 0.46)
    return _choose(
        a,
        M.GRASS,
        (arms & (radius > 0.5), M.ASPHALT, 0.0),
        (ring, M.ASPHALT, 0.0),
        (kerb, M.MARKING, 0.3),
        (radius < 0.22, M.GARDEN, 2.5),
    )


def _golf(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    ca, cb = np.floor(a / 18).astype(np.int32), np.floor(b / 16).astype(np.int32)
    pa, pb = hashed(ca, cb, 7), hashed(ca, cb, 8)
    near = np.hypot(np.mod(a, 18) - 5 - 8 * pa, np.mod(b, 16) - 5 - 6 * pb)
    trap = np.hypot(np.mod(a, 18) - 12 + 6 * pb, np.mod(b, 16) - 4 - 7 * pa)
    wood = (np.abs(np.mod(a + 4 * np.sin(b / 7), 20) - 10) > 8.6) & (spot > 0.3)
    return _choose(a, M.GRASS, (wood, M.LEAF, 9.0), (near < 3.6, M.PITCH, 0.0), (trap < 2.2, M.BUNKER, 0.0))


def _quarry(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    ring = np.maximum(np.abs(2 * a / thing.length_px), np.abs(2 * b / thing.width_px))
    steps = np.floor(ring * 5) * 3.5
    pool = np.hypot(a - 6, b + 4) < 6
    heap = (spot > 0.97) & (ring < 0.6)
    return _choose(a, M.GRAVEL, (ring > 0.6, M.GRAVEL, steps - 8.0), (heap, M.GRAVEL, 5.0), (pool, M.WATER, 0.0))


def _greenhouses(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    return _choose(a, M.PATH, ((np.mod(a, 11) < 9) & (np.mod(b, 24) < 21), M.GLASS, 4.5))


def _parking(thing: LandObject, a: FloatArray, b: FloatArray, spot: FloatArray) -> Layout:
    bay = np.mod(b, 4.5) < 2
    line = (np.mod(b, 4.5) > 2) & (np.mod(b, 4.5) < 2.5)
    return _choose(a, M.ASPHALT, (line, M.MARKING, 0.0), (bay & (spot > 0.22), M.CAR, 1.6))


_OBJECTS: dict[str, Plan] = {
    'oil tanks': _oil_tanks,
    'stadium': _stadium,
    'solar farm': _solar_farm,
    'airport runway': _runway,
    'marina': _marina,
    'roundabout': _roundabout,
    'golf course': _golf,
    'quarry': _quarry,
    'greenhouses': _greenhouses,
    'parking lot': _parking,
}
