"""Places in metres, zone by zone, and the tiles that hold them.

A tile lies in one UTM zone. A photo near the border of a zone may lie in tiles of the next one too, so it has a
position in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grafalign.geo import SHORTEST_DEGREE_M, TileGrid, project, utm_epsg

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SPAN = 1 << 24
"""More cells than a zone has in either direction, so that one number names a cell; the next cell right is 1 more, the
next one up `_SPAN` more, and the next zone `_SPAN` squared more."""


class Positions(NamedTuple):
    """Where photos lie in metres: each in its own zone, and once more in any zone whose tiles could hold it.

    Sorted by cell, the square of one tile's side: they are looked up several times faster so.
    """

    photo: Ints
    """Number among the places that were given."""
    zone: Ints
    """EPSG code."""
    x: Floats
    y: Floats
    own: npt.NDArray[np.bool_]
    """Whether the zone is the photo's own, where it may seed a tile."""
    cell: Ints

    def take(self, rows: npt.NDArray[np.generic]) -> Positions:
        """Some of them."""
        return Positions(*(column[rows] for column in self))


def positions(lon: Floats, lat: Floats, grid: TileGrid) -> Positions:
    """Positions of places in all zones whose tiles could hold them.

    Args:
        lon: degrees, [P].
        lat: degrees, [P]; within the UTM zones.
        grid: shape of the tiles.
    """
    own = utm_epsg(lon, lat)
    reach_lat = 1.5 * grid.side_m / SHORTEST_DEGREE_M
    reach_lon = reach_lat / np.maximum(np.cos(np.deg2rad(np.clip(np.abs(lat) + reach_lat, 0, 89))), 0.01)

    def zones_at(dx: int, dy: int, rows: Ints) -> Ints:
        east = (lon[rows] + dx * reach_lon[rows] + 180) % 360 - 180
        return utm_epsg(east, np.clip(lat[rows] + dy * reach_lat, -90, 90))

    every = np.arange(len(lon))
    corners = [(dx, dy) for dx in (-1, 1) for dy in (-1, 1)]
    at_border = np.zeros(len(lon), dtype=bool)
    for corner in corners:
        at_border |= zones_at(*corner, every) != own
    rows = np.flatnonzero(at_border)  # few: only these may reach other zones
    near = [(zones_at(*step, rows), rows) for step in [*corners, (-1, 0), (1, 0), (0, -1), (0, 1)]]
    others = np.concatenate([np.stack(pair)[:, pair[0] != own[rows]] for pair in near], axis=1)
    zone, photo = np.unique(others, axis=1)  # a corner is reached from three sides
    photo, zone = np.concatenate([every, photo]), np.concatenate([own, zone])
    is_own = np.arange(len(photo)) < len(lon)
    order = np.argsort(zone)
    photo, zone, is_own = photo[order], zone[order], is_own[order]
    x, y = np.empty(len(photo)), np.empty(len(photo))
    for start, stop in runs(zone):
        some = photo[start:stop]
        x[start:stop], y[start:stop] = project(lon[some], lat[some], int(zone[start]))
    cell = _cells(zone, x, y, grid.side_m)
    return Positions(photo, zone, x, y, is_own, cell).take(np.argsort(cell))


def runs(values: Ints) -> list[tuple[int, int]]:
    """Start and stop of the runs of equal values in a sorted column.

    Example:
        >>> runs(np.array([4, 4, 7]))
        [(0, 2), (2, 3)]
    """
    edges = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True)) if len(values) else []


def _cells(zone: Ints, x: Floats, y: Floats, side: float) -> Ints:
    """Number of the square of one tile's side that holds each position; unique over all zones."""
    i = np.floor(x / side).astype(np.int64) + _SPAN // 2
    j = np.floor(y / side).astype(np.int64) + _SPAN // 2
    return ((zone % 1000) * _SPAN + j) * _SPAN + i


class Inside(NamedTuple):
    """Positions in tiles: numbers of both, row and column in pixels."""

    position: Ints
    tile: Ints
    row: Floats
    col: Floats


@dataclass
class Tiles:
    """Tiles, to be looked up by position.

    A tile is filed under the cell of its top left corner, so one that holds a position is filed under the position's
    own cell, the one to the left, the one above, or the one between those two.
    """

    grid: TileGrid
    corner: Ints
    """Cells of the top left corners, in ascending order."""
    left: Floats
    top: Floats

    @classmethod
    def of(cls, grid: TileGrid, zone: Ints, left: Floats, top: Floats) -> tuple[Tiles, Ints]:
        """Tiles in the order of their cells, and where each of them was among those given.

        Args:
            grid: shape of the tiles.
            zone: EPSG codes, [T].
            left: metres, [T], with `top` the corner.
            top: metres, [T].
        """
        corner = _cells(zone, left, top, grid.side_m)
        order = np.argsort(corner)
        return cls(grid, corner[order], left[order], top[order]), order

    def holding(self, places: Positions, part: float) -> Inside:
        """Which positions lie in a part of which tiles.

        Args:
            places: the positions.
            part: share of the tile's side, as of `TileGrid.holds`.
        """
        near, tiles = [], []
        for up in (0, _SPAN):
            low = np.searchsorted(self.corner, places.cell + (up - 1), side='left')
            count = np.searchsorted(self.corner, places.cell + up, side='right') - low
            near.append(np.repeat(np.arange(len(low)), count))
            tiles.append(np.arange(len(near[-1])) + np.repeat(low - (np.cumsum(count) - count), count))
        position, tile = np.concatenate(near), np.concatenate(tiles)
        row, col = self.grid.row_col(places.x[position], places.y[position], self.left[tile], self.top[tile])
        inside = self.grid.holds(row, col, part)
        return Inside(position[inside], tile[inside], row[inside], col[inside])

    def add(self, more: Tiles) -> None:
        """Take in more tiles."""
        at = np.searchsorted(self.corner, more.corner, side='right')
        self.corner = np.insert(self.corner, at, more.corner)
        self.left, self.top = np.insert(self.left, at, more.left), np.insert(self.top, at, more.top)
