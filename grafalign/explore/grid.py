"""Web map tiles over a field: where the pixels of a tile lie among its cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

PX = 256
"""Pixels along a side of a tile."""
DEEPEST = 24
_HALF = math.pi * 6_378_137.0
"""Half the side of the world in EPSG:3857."""
_KNOTS = 17
"""Points along a side of a tile that are transformed; those between are interpolated."""
Floats = npt.NDArray[np.float64]


def tile_box(z: int, x: int, y: int) -> GeoBox:
    """The grid of a tile's pixels in EPSG:3857.

    Raises:
        ValueError: there is no such tile.
    """
    if not (0 <= z <= DEEPEST and 0 <= x < 2**z and 0 <= y < 2**z):
        raise ValueError(f'there is no tile {z}/{x}/{y}')
    side = 2 * _HALF / 2**z
    return GeoBox((PX, PX), Affine(side / PX, 0, x * side - _HALF, 0, -side / PX, _HALF - y * side), 'EPSG:3857')


@dataclass(frozen=True)
class Places:
    """The middles of a tile's pixels among the cells of a field: row r and column c have their middle at (r, c)."""

    rows: Floats
    """[PX, PX]"""
    columns: Floats
    """[PX, PX]"""

    @property
    def step(self) -> float:
        """Cells from pixel to pixel."""
        return float(max(abs(np.diff(self.rows, axis=0)).mean(), abs(np.diff(self.columns, axis=1)).mean()))


class FieldGrid:
    """Cells of a field under web map tiles.

    Args:
        cells: the grid of the cells.
    """

    def __init__(self, cells: GeoBox) -> None:
        self._to_crs = Transformer.from_crs('EPSG:3857', str(cells.crs), always_xy=True)
        self._inverse = ~cells.affine
        self.shape = int(cells.shape[0]), int(cells.shape[1])

    def under(self, box: GeoBox) -> Places | None:
        """Where a tile's pixels lie; None where none lies on the field."""
        knots = np.linspace(0, PX, _KNOTS)
        x, y = box.affine * np.meshgrid(knots, knots)
        with np.errstate(invalid='ignore'):
            column, row = self._inverse * self._to_crs.transform(x, y)
        known = np.isfinite(row) & np.isfinite(column)  # of a tile of half the world some corners are nowhere
        rows, columns = self.shape
        inside = known & (row > 0) & (column > 0) & (row < rows) & (column < columns)
        near = known.any() and row[known].max() > 0 and column[known].max() > 0
        near = near and row[known].min() < rows and column[known].min() < columns
        if not inside.any() and not near:
            return None
        row, column = np.where(known, row, -1e6), np.where(known, column, -1e6)
        return Places(_between(row, knots) - 0.5, _between(column, knots) - 0.5)


def _between(values: Floats, knots: Floats) -> Floats:
    """Values at the middles of pixels from those at knots, bilinearly."""
    middles = np.arange(PX) + 0.5
    across = np.stack([np.interp(middles, knots, row) for row in values])
    return np.stack([np.interp(middles, knots, column) for column in across.T], axis=1)


def degrees_of(box: GeoBox) -> tuple[list[float], bool]:
    """West, south, east and north of a grid, and whether it lies over neither 180 degrees nor a pole.

    East lies beyond 180 degrees where the grid does; around a pole all longitudes do.
    """
    height, width = box.shape
    steps = np.linspace(0, 1, 33)
    zero = np.zeros_like(steps)
    edge = np.concatenate([[steps, zero], [zero + 1, steps], [steps[::-1], zero + 1], [zero, steps[::-1]]], axis=1)
    to_degrees = Transformer.from_crs(str(box.crs), 'EPSG:4326', always_xy=True)
    lon, lat = to_degrees.transform(*(box.affine * (edge[0] * width, edge[1] * height)))
    around = np.rad2deg(np.unwrap(np.deg2rad(lon)))
    if abs(around[-1] - around[0]) > 180:  # the outline goes once around the pole
        north = lat.mean() > 0
        return [-180.0, float(lat.min()) if north else -90.0, 180.0, 90.0 if north else float(lat.max())], False
    west = (around.min() + 180) % 360 - 180
    east = west + around.max() - around.min()
    return [float(west), float(lat.min()), float(east), float(lat.max())], bool(east <= 180)
