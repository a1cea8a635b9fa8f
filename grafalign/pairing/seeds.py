"""Which photos seed a tile: GRAFT's greedy visit, many photos at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grafalign import engine
from grafalign.geo import TileGrid
from grafalign.pairing.zones import Floats, Ints, Positions, Tiles, positions

_FIRST_TOGETHER, _VISITED_TOGETHER, _PORTIONS = 4_096, 131_072, 128
"""Photos that are visited together at first and later on; of very many photos they are visited in so many portions, as
the tiles are copied after each."""


class Seeds(NamedTuple):
    """The tiles of a plan in the order in which they were seeded: EPSG codes and corners in metres, [T] each."""

    epsg: Ints
    left: Floats
    top: Floats


def seed_tiles(order: Ints, lon: Floats, lat: Floats, grid: TileGrid, core: float) -> Seeds:
    """Visit the photos; each that no tile holds yet seeds one that is centred on it.

    Photos are visited in portions, each at most as large as all before. Most photos of a portion lie in tiles that are
    there already; the few others are decided among themselves (`_first_among`).

    Args:
        order: row numbers of the photos as they are visited, [P].
        lon: degrees, [P], by row.
        lat: degrees, [P], by row.
        grid: shape of the tiles.
        core: share of a tile's side within which a photo counts as held.
    """
    none = np.zeros(0)
    tiles, _ = Tiles.of(grid, none.astype(np.int64), none, none)
    seeds = [Seeds(none.astype(np.int64), none, none)]

    def places(portion: slice) -> Positions:
        rows = order[portion]
        return positions(lon[rows], lat[rows], grid)

    for portion in engine.in_order(places, _portions(len(order)), 1):
        seeds.append(_visit(portion, tiles, core))
    return Seeds(*(np.concatenate(column) for column in zip(*seeds, strict=True)))


def _portions(photos: int) -> Iterator[slice]:
    start, most = 0, max(_VISITED_TOGETHER, photos // _PORTIONS)
    while start < photos:
        stop = min(photos, start + min(max(start, _FIRST_TOGETHER), most))
        yield slice(start, stop)
        start = stop


def _visit(places: Positions, tiles: Tiles, core: float) -> Seeds:
    """Visit photos by their numbers; return the tiles that they seed, in that order, and add them to those before."""
    undecided = np.ones(places.photo.max(initial=-1) + 1, dtype=bool)
    undecided[places.photo[tiles.holding(places, core).position]] = False
    places = places.take(undecided[places.photo])
    own = places.take(places.own)
    left, top = tiles.grid.corner(own.x, own.y)
    could, order = Tiles.of(tiles.grid, own.zone, left, top)
    photo, zone = own.photo[order], own.zone[order]
    inside = could.holding(places, core)
    earlier, later = photo[inside.tile], places.photo[inside.position]
    first = earlier < later
    seeds = _first_among(earlier[first], later[first], undecided)[photo]
    photo, zone, left, top = photo[seeds], zone[seeds], could.left[seeds], could.top[seeds]
    tiles.add(Tiles(tiles.grid, could.corner[seeds], left, top))
    visited = np.argsort(photo)
    return Seeds(zone[visited], left[visited], top[visited])


def _first_among(earlier: Ints, later: Ints, undecided: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which photos seed a tile, of those that no tile holds yet.

    In every round all photos seed that no earlier undecided photo could hold, and those that they hold are covered.

    Args:
        earlier: for pairs of photos the one that is visited first,
        later: and the one that its tile would hold.
        undecided: of all photos which are meant; changed.

    Example: the tile of 0 holds 1, and that of 1 would hold 2; as 1 seeds none, 2 does.

        >>> _first_among(np.array([0, 1]), np.array([1, 2]), np.array([True, True, True]))
        array([ True, False,  True])
    """
    seeding = np.zeros(len(undecided), dtype=bool)
    while undecided.any():
        waits = np.zeros(len(undecided), dtype=bool)
        waits[later] = True
        now = undecided & ~waits
        seeding |= now
        undecided &= ~now
        undecided[later[now[earlier]]] = False
        still = undecided[earlier] & undecided[later]
        earlier, later = earlier[still], later[still]
    return seeding
