"""The land: one raster of classes, one of roads, and the list of objects, all laid out by geography.

The land's own grid is UTM zone 25 north at 5 m. It lies in the Atlantic at 30 degrees west, where there is no land to
confuse it with, and its eastern half belongs to zone 26.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy import ndimage

from grafalign.labels import VOID
from grafalign.sandbox.classes import CLASS_ID, LAND_CLASSES, LandClass, kinds_of
from grafalign.sandbox.noise import FloatArray, IntArray, cells, hashed, spectral
from grafalign.sandbox.settlement import LANE, MAIN, Town, draw_roads, find_towns
from grafalign.sandbox.terrain import COARSE, Terrain, make_terrain

GSD_M = 5.0
EPSG_WEST, EPSG_EAST = 32625, 32626
ZONE_BORDER_EASTING_M = 736_500.0
"""Easting in zone 25 of the 30th meridian west near 45 degrees north."""
NORTHING_M = 4_990_000.0


@dataclass(frozen=True)
class LandObject:
    """Something smaller than a tile (or a strip, for the runway): an oriented rectangle on the fine grid."""

    kind: str
    row: float
    col: float
    length_px: float
    width_px: float
    bearing_rad: float

    def frame(self, rows: FloatArray, cols: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Coordinates along and across the object, in pixels from its centre."""
        c, s = np.cos(self.bearing_rad), np.sin(self.bearing_rad)
        down, right = rows - self.row, cols - self.col
        return (right * c + down * s).astype(np.float32), (down * c - right * s).astype(np.float32)

    def window(self, shape: tuple[int, int], margin: int = 3) -> tuple[slice, slice]:
        """The rows and columns that hold the object, clipped to the land."""
        reach = int(np.hypot(self.length_px, self.width_px) / 2) + margin
        r, c = int(self.row), int(self.col)
        return (
            slice(max(0, r - reach), min(shape[0], r + reach + 1)),
            slice(max(0, c - reach), min(shape[1], c + reach + 1)),
        )

    def local(self, shape: tuple[int, int], margin: int = 3) -> tuple[tuple[slice, slice], FloatArray, FloatArray]:
        """The object's window with the along and across coordinates of its pixels."""
        window = self.window(shape, margin)
        rows, cols = np.mgrid[window].astype(np.float32)
        return window, *self.frame(rows, cols)


@dataclass(frozen=True)
class Land:
    """Everything that stands still in the world; rasters are [H, W] on the fine grid."""

    seed: int
    classes: npt.NDArray[np.uint8]
    """An index into `CLASS_NAMES`, or `VOID` on roads: narrower than a patch, they are not scored."""
    roads: npt.NDArray[np.uint8]
    elevation: FloatArray
    parcels: IntArray
    town_at: FloatArray
    """Distance to the nearest town over its radius."""
    towns: list[Town]
    objects: list[LandObject]
    tints: int = 1
    """Colours that the land has, the plain one among them."""
    tint: npt.NDArray[np.uint8] | None = None
    """Which colour: 0 is plain, as roads are; None where all land is."""

    @property
    def kinds(self) -> tuple[LandClass, ...]:
        """What truth is told by: the classes, in every colour that there is."""
        return kinds_of(self.tints)

    @cached_property
    def kind(self) -> npt.NDArray[np.uint8]:
        """Truth: an index into `kinds`, or `VOID` on roads."""
        if self.tint is None:
            return self.classes
        return np.where(self.classes == VOID, VOID, self.classes + len(LAND_CLASSES) * self.tint).astype(np.uint8)

    @property
    def geobox(self) -> GeoBox:
        """The fine grid."""
        height, width = self.classes.shape
        left = ZONE_BORDER_EASTING_M - GSD_M * (width // 2)
        return GeoBox((height, width), Affine(GSD_M, 0, left, 0, -GSD_M, NORTHING_M), f'EPSG:{EPSG_WEST}')


# kind: (length, width) in pixels, number per 100 km2
_OBJECTS: dict[str, tuple[tuple[int, int], float]] = {
    'airport runway': ((110, 15), 11),
    'marina': ((50, 40), 14),
    'stadium': ((46, 38), 14),
    'oil tanks': ((52, 40), 13),
    'solar farm': ((56, 46), 15),
    'golf course': ((62, 50), 14),
    'quarry': ((54, 46), 14),
    'greenhouses': ((54, 44), 14),
    'parking lot': ((44, 34), 18),
    'roundabout': ((24, 24), 20),
}
OBJECT_KINDS = tuple(_OBJECTS)
"""Classes of single objects; the others are land uses."""


def make_land(seed: int, shape: tuple[int, int] = (3072, 3840), tints: int = 1) -> Land:
    """Lay out a world.

    Args:
        seed: the same seed gives the same world.
        shape: rows and columns at 5 m; multiples of 16.
        tints: colours of the land, from 1 (plain) to 9.
    """
    coarse = (shape[0] // COARSE, shape[1] // COARSE)
    terrain = make_terrain(coarse, seed)
    towns = find_towns(terrain, seed)
    half = (shape[0] // 2, shape[1] // 2)
    elevation, slope = (_enlarge(a, half) for a in (terrain.elevation, terrain.slope))
    elevation += 1.5 * spectral(half, 1.6, seed + 40, 80)
    bend = 0.35 * spectral(half, 1.6, seed + 41, 30)
    water = _enlarge(terrain.water.astype(np.float32), half) + 0.25 * bend > 0.5
    town_at = _town_distance(half, towns) * (1 + 0.12 * spectral(half, 1.8, seed + 42, 60))
    parcels, border = cells(half, 17, seed + 43, warp_px=2.5)
    classes = _land_use(terrain, elevation, slope, water, town_at.astype(np.float32), parcels, seed)
    _, wide = cells(half, 46, seed + 46, warp_px=6)
    lanes = (wide < 0.55) | ((border < 0.5) & (spectral(half, 1.5, seed + 47, 50) > 1.2))

    classes, parcels, lanes, water = (np.repeat(np.repeat(a, 2, 0), 2, 1) for a in (classes, parcels, lanes, water))
    elevation, town_at = _enlarge(elevation, shape), _enlarge(town_at.astype(np.float32), shape)
    roads = draw_roads(shape, terrain, towns, lanes, town_at, water, seed)
    objects = _place_objects(classes, roads, water, elevation, town_at, seed)
    classes[roads > 0] = VOID
    tint = _colour(classes, objects, tints, seed) if tints > 1 else None
    return Land(seed, classes, roads, elevation, parcels, town_at, towns, objects, tints, tint)


def _colour(classes: npt.NDArray[np.uint8], objects: list[LandObject], tints: int, seed: int) -> npt.NDArray[np.uint8]:
    """A colour for every region of about half a kilometre, and for every object one of its own."""
    rng = np.random.default_rng((seed, 200))
    half = (classes.shape[0] // 2, classes.shape[1] // 2)
    region = np.repeat(np.repeat(cells(half, 50, seed + 201, warp_px=6)[0], 2, 0), 2, 1)
    tint = rng.integers(0, tints, int(region.max()) + 1).astype(np.uint8)[region]
    for thing in objects:
        window = thing.window(classes.shape)
        tint[window][classes[window] == CLASS_ID[thing.kind]] = rng.integers(tints)
    tint[classes == VOID] = 0
    return tint


def _enlarge(field: FloatArray, shape: tuple[int, int]) -> FloatArray:
    factors = (shape[0] / field.shape[0], shape[1] / field.shape[1])
    out: FloatArray = ndimage.zoom(field, factors, order=1, mode='nearest', grid_mode=True).astype(np.float32)
    return out


def _town_distance(shape: tuple[int, int], towns: list[Town]) -> FloatArray:
    rows, cols = (np.arange(n, dtype=np.float32) * 2 for n in shape)
    nearest = np.full(shape, 99.0, dtype=np.float32)
    for town in towns:
        distance = np.hypot(rows[:, None] - town.row, cols[None, :] - town.col) / town.radius_px
        nearest = np.minimum(nearest, distance.astype(np.float32))
    return nearest


def _land_use(
    terrain: Terrain,
    elevation: FloatArray,
    slope: FloatArray,
    water: npt.NDArray[np.bool_],
    town_at: FloatArray,
    parcels: IntArray,
    seed: int,
) -> npt.NDArray[np.uint8]:
    """Give every parcel a use by its height, slope, wetness, distance to town and a regional taste."""
    shape = elevation.shape
    count = int(parcels.max()) + 1
    number = np.bincount(parcels.ravel(), minlength=count).clip(1)

    def mean(field: FloatArray) -> FloatArray:
        return (np.bincount(parcels.ravel(), field.ravel(), count) / number).astype(np.float32)

    height, steep, town = mean(elevation), mean(slope), mean(town_at)
    to_water = mean(ndimage.distance_transform_edt(~water).astype(np.float32) * 10)
    wild, taste, damp, zone = (
        mean(spectral(shape, s, seed + 50 + i, size))
        for i, (s, size) in enumerate(((1.7, 120), (1.5, 60), (1.6, 50), (1.2, 40)))
    )
    dice, dice2 = (hashed(np.arange(count), np.full(count, i), seed) for i in (1, 2))
    use = np.full(count, CLASS_ID['cropland'], dtype=np.uint8)

    def put(where: npt.NDArray[np.bool_], name: str) -> None:
        use[where] = CLASS_ID[name]

    put(dice < 0.27, 'meadow')
    put((taste > 0.55) & (dice < 0.8), 'orchard')
    put((taste < -0.45) & (dice < 0.85) & (steep > 0.02), 'vineyard')
    woody = wild + 5.0 * steep + 0.004 * (height - 60) + 0.35 * (dice - 0.5) > 0.75
    conifer = 0.006 * (height - 150) + 0.8 * damp + 0.3 * (dice2 - 0.5) > 0
    put(woody & ~conifer, 'broadleaf forest')
    put(woody & conifer, 'conifer forest')
    put((height > 300) & ~woody & (dice < 0.7), 'meadow')
    put((height > 330) & (steep > 0.16) | (height > 470) & (dice < 0.85) | (steep > 0.34), 'bare rock')
    put((to_water < 260) & (damp > 0.15) & (height < 90) & (dice < 0.85), 'marsh')
    put((town < 1.0) & (dice < 0.97), 'suburb')
    put((town < 1.0) & (town > 0.3) & (zone > 0.3), 'tower blocks')
    put((town < 1.3) & (town > 0.5) & (zone < -0.3), 'warehouses')
    put(town < 0.36, 'old town')
    classes = use[parcels]
    near_sea = ndimage.distance_transform_edt(~_enlarge_mask(terrain.sea, shape)) * 10
    sandy = spectral(shape, 1.8, seed + 60, 90) > -0.6
    shore = ~water & (near_sea < 150 + 50 * spectral(shape, 1.6, seed + 61, 40))
    classes[shore & sandy & (slope < 0.2)] = CLASS_ID['beach']
    classes[shore & ~sandy & (slope > 0.08)] = CLASS_ID['bare rock']
    classes[water] = CLASS_ID['water']
    return classes


def _enlarge_mask(mask: npt.NDArray[np.bool_], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    return _enlarge(mask.astype(np.float32), shape) > 0.5


def _place_objects(
    classes: npt.NDArray[np.uint8],
    roads: npt.NDArray[np.uint8],
    water: npt.NDArray[np.bool_],
    elevation: FloatArray,
    town_at: FloatArray,
    seed: int,
) -> list[LandObject]:
    """Find a plausible free site for every object and write it into the class and road rasters."""
    rng = np.random.default_rng(seed + 71)
    shape = classes.shape
    step = 4
    sample = (slice(None, None, step), slice(None, None, step))
    cls, town, high, wet = classes[sample], town_at[sample], elevation[sample], water[sample]
    down, right = np.gradient(high, GSD_M * step)
    steep = ndimage.uniform_filter(np.hypot(down, right), 9)
    dry = ndimage.distance_transform_edt(~wet) * GSD_M * step
    main = roads[sample] == MAIN
    farm = np.isin(cls, [CLASS_ID['cropland'], CLASS_ID['meadow']])
    sites = {
        'airport runway': farm & (steep < 0.09) & (town > 1.15) & (dry > 150),
        'marina': wet
        & (dry == 0)
        & (ndimage.distance_transform_edt(wet) * GSD_M * step < 110)
        & (ndimage.distance_transform_edt(wet) * GSD_M * step > 50)
        & (ndimage.uniform_filter(wet.astype(float), 31) > 0.35),
        'stadium': (town > 0.45) & (town < 1.25) & (dry > 130),
        'oil tanks': (town > 0.8) & (town < 2.2) & (dry > 130) & (steep < 0.12),
        'solar farm': farm & (town > 1.1) & (steep < 0.2) & (dry > 150),
        'golf course': farm & (town > 0.95) & (steep < 0.2) & (dry > 150),
        'quarry': (high > 70) & (steep > 0.06) & (town > 1.3) & (dry > 150),
        'greenhouses': farm & (town > 0.95) & (steep < 0.12) & (dry > 140),
        'parking lot': (town > 0.35) & (town < 1.35) & (dry > 120),
        'roundabout': main & (town > 0.3) & (town < 2.5) & (dry > 90),
    }
    edge = np.zeros(cls.shape, bool)
    edge[12:-12, 12:-12] = True
    taken = np.zeros(cls.shape, bool)
    objects = []
    for kind, ((length, width), per_100km2) in _OBJECTS.items():
        candidates = rng.permutation(np.flatnonzero(sites[kind] & edge))
        wanted = max(1, round(per_100km2 * classes.size * GSD_M**2 / 1e8))
        for site in candidates:
            row, col = (int(v) for v in divmod(int(site), cls.shape[1]))
            size = rng.uniform(0.88, 1.12)
            thing = LandObject(kind, row * step, col * step, length * size, width * size, rng.uniform(0, np.pi))
            window, along, across = thing.local(shape)
            # a free margin of about 40 m keeps objects apart
            reach = int(max(length, width) * 0.72 / step) + 2
            block = (slice(max(0, row - reach), row + reach), slice(max(0, col - reach), col + reach))
            if taken[block].any():
                continue
            taken[row - 2 : row + 3, col - 2 : col + 3] = True
            taken[block] |= (
                np.hypot(*np.ogrid[-reach:reach, -reach:reach])[: taken[block].shape[0], : taken[block].shape[1]]
                < reach
            )
            inside = (np.abs(along) < thing.length_px / 2) & (np.abs(across) < thing.width_px / 2)
            if kind in ('stadium', 'roundabout'):
                inside = (along / thing.length_px) ** 2 + (across / thing.width_px) ** 2 < 0.25
            around = ndimage.binary_dilation(inside, iterations=2) & ~inside
            classes[window][inside] = CLASS_ID[kind]
            roads[window][inside] = 0
            ring = around & (roads[window] == 0) & ~water[window]
            roads[window][ring] = LANE
            objects.append(thing)
            wanted -= 1
            if wanted == 0:
                break
    return objects
