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
        column, row = self._inverse * self._to_crs.transform(x, y)
        if not (np.isfinite(row).all() and np.isfinite(column).all()):
            return None
        rows, columns = self.shape
        if row.max() <= 0 or column.max() <= 0 or row.min() >= rows or column.min() >= columns:
            return None
        return Places(_between(row, knots) - 0.5, _between(column, knots) - 0.5)


def _between(values: Floats, knots: Floats) -> Floats:
    """Values at the middles of pixels from those at knots, bilinearly."""
    middles = np.arange(PX) + 0.5
    across = np.stack([np.interp(middles, knots, row) for row in values])
    return np.stack([np.interp(middles, knots, column) for column in across.T], axis=1)
