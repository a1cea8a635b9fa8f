"""Tile geometry: where a tile lies, which pixel a place falls on, and which block of the Earth it belongs to.

A tile is north-up in the UTM zone of its centre, `size_px` pixels of `gsd_m` metres on a side, with its corner snapped
to the grid of the scenes (multiples of the GSD, counted from an origin), so that they are read without resampling. Rows
count down from the top edge and columns right from the left edge, both in pixels and fractional: pixel (0, 0) covers
[0, 1) x [0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Proj, Transformer

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

UTM_SOUTH_LIMIT, UTM_NORTH_LIMIT = -80.0, 84.0
METRES_PER_DEGREE = 111_320.0
"""Length of a degree along the equator."""
SHORTEST_DEGREE_M = 110_000.0
"""No degree of latitude is shorter (110,574 m at the equator): for reaches that must not be too small."""
EARTH_RADIUS_M = 6_371_000.0
"""Of the sphere with the Earth's mean radius."""
EARTH_KM_PER_DEGREE = METRES_PER_DEGREE / 1000
_NAMED_TOGETHER = 1 << 20
"""Tiles whose names are written at once."""
_TRUE_SCALE = 0.01
"""Projections that are off by less are taken for true."""


def utm_epsg(lon: Floats, lat: Floats) -> Ints:
    """EPSG code of the UTM zone of each place, with the exceptions of Norway (32V) and Svalbard (X).

    Args:
        lon: degrees, [-180, 180].
        lat: degrees; UTM is defined from -80 to 84.
    """
    lon, lat = np.asarray(lon, dtype=float), np.asarray(lat, dtype=float)
    zone = np.floor((lon + 180) / 6).astype(np.int64) % 60 + 1
    zone = np.where((lat >= 56) & (lat < 64) & (lon >= 3) & (lon < 12), 32, zone)
    for low, high, number in ((0, 9, 31), (9, 21, 33), (21, 33, 35), (33, 42, 37)):
        zone = np.where((lat >= 72) & (lat <= 84) & (lon >= low) & (lon < high), number, zone)
    return np.where(lat >= 0, 32600, 32700) + zone


@lru_cache(maxsize=256)
def _crs(wkt: str) -> CRS:
    return CRS.from_wkt(wkt)


def unit_metres(wkt: str, x: float, y: float) -> float:
    """Metres on the ground of one unit of a CRS at a place: of a degree along a meridian, of a projection by its scale.

    Web Mercator's units are metres at the equator alone: at 52 degrees north 1.62 of them are one. Scales within a
    hundredth of 1, as UTM's are, count as 1.

    Args:
        wkt: of the CRS.
        x: of the place.
        y: of the place.

    Example:
        >>> round(unit_metres(CRS.from_epsg(3857).to_wkt(), 556597, 6800125), 3)
        0.616
    """
    crs = _crs(wkt)
    if crs.is_geographic:
        return METRES_PER_DEGREE
    unit = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
    if not crs.is_projected:
        return unit
    lon, lat = _transformer(wkt, 'EPSG:4326').transform(x, y)
    scale = math.sqrt(Proj(crs).get_factors(lon, lat).areal_scale) if math.isfinite(lon) else 1.0
    return unit if not 0 < scale < math.inf or abs(scale - 1) < _TRUE_SCALE else unit / scale


@lru_cache(maxsize=256)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def project(lon: Floats, lat: Floats, epsg: int) -> tuple[Floats, Floats]:
    """Longitude and latitude in degrees to easting and northing in metres of one zone."""
    x, y = _transformer('EPSG:4326', f'EPSG:{epsg}').transform(lon, lat)
    return np.asarray(x), np.asarray(y)


def unproject(x: Floats, y: Floats, epsg: int) -> tuple[Floats, Floats]:
    """Easting and northing in metres of one zone to longitude and latitude in degrees."""
    lon, lat = _transformer(f'EPSG:{epsg}', 'EPSG:4326').transform(x, y)
    return np.asarray(lon), np.asarray(lat)


@dataclass(frozen=True)
class TileGrid:
    """The shape that all tiles of a data set share."""

    size_px: int
    """Pixels on a side."""
    gsd_m: float
    """Metres a pixel."""
    origin_m: tuple[float, float] = (0.0, 0.0)
    """Easting and northing of a corner of the grid: Landsat's is at odd multiples of 15 m."""

    @property
    def side_m(self) -> float:
        """Length of a side in metres."""
        return self.size_px * self.gsd_m

    def corner(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Left and top (metres) of the tile centred on a position, to the nearest corner of the grid.

        >>> TileGrid(64, 30, (15, 15)).corner(np.array([1000.0]), np.array([1000.0]))
        (array([45.]), array([1965.]))
        """
        east, north = self.origin_m
        left = np.round((x - self.side_m / 2 - east) / self.gsd_m) * self.gsd_m + east
        top = np.round((y + self.side_m / 2 - north) / self.gsd_m) * self.gsd_m + north
        return left, top

    def row_col(self, x: Floats, y: Floats, left: Floats, top: Floats) -> tuple[Floats, Floats]:
        """Fractional row and column of positions in tiles with the given corners."""
        return (top - y) / self.gsd_m, (x - left) / self.gsd_m

    def holds(self, row: Floats, col: Floats, part: float = 1.0) -> npt.NDArray[np.bool_]:
        """Whether a row and column fall inside: left and top edges belong to the tile, right and bottom do not.

        Args:
            row: pixels from the top edge.
            col: pixels from the left edge.
            part: of the side: the square of that share in the tile's middle is meant.
        """
        low, high = self.inner(part)
        return (row >= low) & (row < high) & (col >= low) & (col < high)

    def inner(self, part: float) -> tuple[float, float]:
        """First and last row (and column) of the square in a tile's middle whose side is a share of the tile's.

        Example:
            >>> TileGrid(64, 10).inner(0.5)
            (16.0, 48.0)
        """
        half = self.size_px * part / 2
        return self.size_px / 2 - half, self.size_px / 2 + half

    def geobox(self, epsg: int, left: float, top: float) -> GeoBox:
        """The tile as an odc.geo GeoBox."""
        transform = Affine(self.gsd_m, 0, left, 0, -self.gsd_m, top)
        return GeoBox((self.size_px, self.size_px), transform, f'EPSG:{epsg}')

    def tile_id(self, epsg: int, left: float, top: float) -> str:
        """Name of a place on this grid: the same place always gets the same id."""
        return f'{epsg}_{_plain(left)}_{_plain(top)}_{_plain(self.gsd_m)}m_{self.size_px}px'

    def tile_ids(self, epsg: Ints, left: Floats, top: Floats) -> pd.Series:
        """Names of many places, as a column of text."""
        tail = f'{_plain(self.gsd_m)}m_{self.size_px}px'
        text = pa.large_string()
        if not all(float(v).is_integer() for v in (self.gsd_m, *self.origin_m)):
            corners = zip(epsg.tolist(), left.tolist(), top.tolist(), strict=True)
            return pd.Series([f'{e}_{_plain(x)}_{_plain(y)}_{tail}' for e, x, y in corners], dtype='str')
        parts = []
        for start in range(0, len(epsg), _NAMED_TOGETHER):  # corners are whole metres: many are written at once
            some = [column[start : start + _NAMED_TOGETHER].astype(np.int64) for column in (epsg, left, top)]
            columns = [pa.array(column).cast(text) for column in some]
            parts.append(pc.binary_join_element_wise(*columns, pa.scalar(tail, text), pa.scalar('_', text)))
        return pd.Series(pa.chunked_array(parts, text), dtype='str')

    def polygons(self, epsg: Ints, left: Floats, top: Floats) -> npt.NDArray[np.object_]:
        """Tile outlines in degrees, with the edges' middles so that they stay true in longitude and latitude.

        Across the antimeridian longitudes exceed 180.
        """
        ring = np.array([(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5), (0, 0)]) * self.side_m
        outlines = np.empty(len(epsg), dtype=object)
        for zone in np.unique(epsg):
            here = np.flatnonzero(epsg == zone)
            lon, lat = unproject(left[here, None] + ring[:, 0], top[here, None] - ring[:, 1], int(zone))
            wraps = (lon.max(1) - lon.min(1)) > 180
            lon = np.where(wraps[:, None] & (lon < 0), lon + 360, lon)
            outlines[here] = shapely.polygons(np.stack([lon, lat], axis=-1))
        return outlines

    def box_around(
        self, epsg: int, left: Floats, top: Floats, margin_m: float = 0.0
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """West, south, east, north of a box that surely contains each tile of one zone and a margin, in degrees.

        Cheaper than `bounds_lonlat`: the tile's centre and its diagonal on a sphere, a twentieth longer.
        """
        lon, lat = unproject(left + self.side_m / 2, top - self.side_m / 2, epsg)
        reach_lat = 1.05 * (self.side_m + 2 * margin_m) * np.sqrt(0.5) / SHORTEST_DEGREE_M
        reach_lon = reach_lat / np.maximum(np.cos(np.deg2rad(np.clip(np.abs(lat) + reach_lat, 0, 89.9))), 1e-3)
        return lon - reach_lon, lat - reach_lat, lon + reach_lon, lat + reach_lat

    def bounds_lonlat(
        self, epsg: int, left: Floats, top: Floats, margin_m: float = 0.0
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """West, south, east, north of tiles of one zone with a margin, in degrees, from points along all four edges.

        Across the antimeridian `east` exceeds 180.
        """
        side = self.side_m + 2 * margin_m
        steps = np.linspace(0, side, 5)
        edge = np.concatenate(
            [
                np.stack([steps, 0 * steps]),
                np.stack([steps, 0 * steps + side]),
                np.stack([0 * steps, steps]),
                np.stack([0 * steps + side, steps]),
            ],
            axis=1,
        )
        lon, lat = unproject(left[:, None] - margin_m + edge[0], top[:, None] + margin_m - edge[1], epsg)
        wraps = (lon.max(1) - lon.min(1)) > 180
        lon = np.where(wraps[:, None] & (lon < 0), lon + 360, lon)
        return lon.min(1), lat.min(1), lon.max(1), lat.max(1)


def _plain(value: float) -> str:
    """A number as short as it can be written, without a point in names."""
    return f'{value:.10g}'.replace('.', 'p')


def blocks_touched(
    west: Floats, south: Floats, east: Floats, north: Floats, block_km: float, points: int = 2
) -> npt.NDArray[np.int64]:
    """Blocks of the Earth that boxes touch, as [N, points ** 2] block numbers (repeated where there are fewer).

    Blocks are rows of equal height in latitude, each row cut into as many equal columns as make them about square. The
    partition is the same everywhere, whatever the UTM zone, so that two tiles that overlap share a block even where
    zones meet.

    Args:
        west: degrees, with `south`, `east`, `north` the box of each tile.
        south: degrees.
        east: degrees, above 180 across the antimeridian.
        north: degrees.
        block_km: side of a block in kilometres.
        points: places along each axis of a box that are looked at, no further apart than a block: the two ends where
            boxes are smaller than a block.
    """
    height_deg = block_km / EARTH_KM_PER_DEGREE
    found = []
    steps = np.linspace(0, 1, points)
    for lat in (south + step * (north - south) for step in steps):
        row = np.floor((lat + 90) / height_deg)
        middle = np.deg2rad(np.clip((row + 0.5) * height_deg - 90, -89.9, 89.9))
        columns = np.maximum(1, np.floor(360 * np.cos(middle) / height_deg))
        for lon in (west + step * (east - west) for step in steps):
            column = np.floor((lon + 180) % 360 / 360 * columns)
            found.append(row.astype(np.int64) * 10_000_000 + column.astype(np.int64))
    return np.stack(found, axis=1)
