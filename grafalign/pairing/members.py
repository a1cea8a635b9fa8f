"""Which photos belong to which tiles: all within reach, of which each tile keeps so many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grafalign import engine
from grafalign.geo import TileGrid, project
from grafalign.pairing.seeds import Seeds
from grafalign.pairing.zones import Floats, Ints, Tiles, positions, runs

_TOGETHER = 131_072
"""Photos, or pairs, that are looked at together."""


class Members(NamedTuple):
    """Photos in tiles, M rows sorted by tile and visit, and what became of all P photos."""

    tile: Ints
    photo: Ints
    in_tile: npt.NDArray[np.bool_]
    """Whether a photo lies within the reach of a usable tile, which may have kept others, [P]."""
    in_near: npt.NDArray[np.bool_]
    """Whether it lies within the reach of a tile that is left out for what it is near to, [P]."""


def members_of(
    seeds: Seeds,
    usable: npt.NDArray[np.bool_],
    near: npt.NDArray[np.bool_],
    order: Ints,
    lon: Floats,
    lat: Floats,
    grid: TileGrid,
    reach: float,
    most: int,
) -> Members:
    """The first photos within the reach of each usable tile.

    Photos are looked up in the order of the visit, a portion at a time, so what no tile keeps need not be remembered.

    Args:
        seeds: T tiles.
        usable: tiles that may have photos, [T].
        near: tiles that are left out for what they are near to, [T].
        order: row numbers of the photos as they are visited, [P].
        lon: degrees, [P], by row.
        lat: degrees, [P], by row.
        grid: shape of the tiles.
        reach: share of a tile's side within which photos belong to it.
        most: photos that a tile keeps.
    """
    in_tile, in_near = np.zeros((2, len(order)), dtype=bool)
    count = np.zeros(len(usable), dtype=np.int64)
    parts = [np.zeros((2, 0), dtype=order.dtype)]
    for photo, tile in _by_tile(seeds, order, lon, lat, grid, reach):
        in_near[photo[near[tile]]] = True
        in_tile[photo[usable[tile]]] = True
        first = np.flatnonzero(np.diff(tile, prepend=-1))
        members = np.diff(first, append=len(tile))
        nth = np.arange(len(tile)) + np.repeat(count[tile[first]] - first, members)
        count[tile[first]] += members
        kept = usable[tile] & (nth < most)
        parts.append(np.stack([photo[kept], tile[kept]]).astype(order.dtype))
    photo, tile = np.concatenate(parts, axis=1)
    parts.clear()
    by_tile = np.argsort(tile, kind='stable')
    return Members(tile[by_tile], photo[by_tile], in_tile, in_near)


def _by_tile(
    seeds: Seeds, order: Ints, lon: Floats, lat: Floats, grid: TileGrid, reach: float
) -> Iterator[tuple[Ints, Ints]]:
    """Photos and the tiles they lie in, sorted by tile and visit, for one portion of the visit after another."""
    tiles, number = Tiles.of(grid, *seeds)

    def look(start: int) -> tuple[Ints, Ints]:
        rows = order[start : start + _TOGETHER]
        places = positions(lon[rows], lat[rows], grid)
        inside = tiles.holding(places, reach)
        turn, tile = places.photo[inside.position], number[inside.tile]
        by_tile = np.argsort(tile * len(rows) + turn)
        return rows[turn[by_tile]], tile[by_tile]

    yield from engine.in_order(look, range(0, len(order), _TOGETHER))


def rows_and_columns(
    seeds: Seeds, tile: Ints, lon: Floats, lat: Floats, photo: Ints, grid: TileGrid
) -> tuple[Floats, Floats]:
    """Rows and columns of photos in tiles, in pixels, [M] each.

    Args:
        seeds: T tiles.
        tile: number of each photo's tile, [M].
        lon: degrees, [P].
        lat: degrees, [P].
        photo: row numbers of the photos, [M].
        grid: shape of the tiles.
    """
    row, col = np.empty((2, len(tile)))

    def fill(start: int) -> None:
        tiles = tile[start : start + _TOGETHER]
        by_zone = np.argsort(seeds.epsg[tiles], kind='stable')
        zones = seeds.epsg[tiles[by_zone]]
        for first, last in runs(zones):
            some = start + by_zone[first:last]
            x, y = project(lon[photo[some]], lat[photo[some]], int(zones[first]))
            row[some], col[some] = grid.row_col(x, y, seeds.left[tile[some]], seeds.top[tile[some]])

    for _ in engine.run(fill, range(0, len(tile), _TOGETHER)):
        pass
    return row, col
