"""GRAFT's greedy rule: from photo positions to tiles, independent of the order of the rows.

Photos are visited in a fixed pseudo-random order (a hash of photo id and seed). A photo that no tile holds yet seeds a
tile centred on it; in the end every photo inside a tile belongs to it, and at most `max_photos` are kept per tile,
chosen by the same hash. With a `core` a photo counts as held only in the inner part of a tile (ours: more tiles, which
overlap, from the same photos), and with a `reach` only photos in the inner part belong to it. Photos may count at a
place before their cameras; the rows and columns that are kept are the cameras'. Tiles that touch blocks
of two splits, or lie within a buffer of another split's block, are dropped: no pixel is on both sides, and no place is
shown from both either.

All steps work on whole columns and cost time and memory in proportion to the number of photos
(`experiments/performance/planning.md`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyproj import Geod

from grafalign.geo import (
    SHORTEST_DEGREE_M,
    UTM_NORTH_LIMIT,
    UTM_SOUTH_LIMIT,
    TileGrid,
    blocks_touched,
    project,
    utm_epsg,
)
from grafalign.photos.ranks import ranks

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK_SHARE = 0.7
"""Share of a block's height that its width surely has, however the columns of its row are divided."""
_FIRST_TOGETHER, _VISITED_TOGETHER = 4_096, 2_000_000
"""Photos of the first portion, and of one at most."""


@dataclass(frozen=True)
class Plan:
    """Tiles and the photos in them."""

    tiles: pd.DataFrame
    """tile_id, epsg, left, top (metres), split."""
    pairs: pd.DataFrame
    """tile, photo (row numbers), row, col (pixels); sorted by tile."""
    dropped: pd.DataFrame
    """Photos in no tile of the plan: photo (row number), reason."""


def split_of_blocks(blocks: Ints, shares: dict[str, float], seed: int) -> npt.NDArray[np.object_]:
    """The split of every block, by a hash of its number: any shape in, the same shape of names out."""
    names = list(shares)
    edges = np.cumsum([shares[n] for n in names])
    unique, inverse = np.unique(blocks, return_inverse=True)
    key = seed.to_bytes(8, 'little', signed=True)
    draws = [
        int.from_bytes(hashlib.blake2b(int(b).to_bytes(8, 'little'), digest_size=8, key=key).digest(), 'little') / 2**64
        for b in unique
    ]
    picked = np.minimum(np.searchsorted(edges, draws, side='right'), len(names) - 1)
    return np.array(names, dtype=object)[picked][inverse].reshape(blocks.shape)


def make_plan(
    photo_ids: Any,
    lon: Floats,
    lat: Floats,
    grid: TileGrid,
    max_photos: int,
    seed: int,
    block_km: float,
    shares: dict[str, float],
    buffer_m: float = 0.0,
    core: float = 1.0,
    reach: float = 1.0,
    viewed: tuple[Floats, Floats] | None = None,
) -> Plan:
    """Plan the tiles for a photo table.

    Args:
        photo_ids: unique ids of P photos; a column of text, or a list.
        lon: degrees, [P].
        lat: degrees, [P]; within the UTM zones.
        grid: shape of the tiles.
        max_photos: photos kept per tile.
        seed: seed of the visiting order and of the splits.
        block_km: side of the split blocks.
        shares: share of each split.
        buffer_m: metres that a tile keeps from blocks of other splits.
        core: share of a tile's side within which a photo needs no tile of its own.
        reach: share of a tile's side within which photos belong to it.
        viewed: degrees east and north at which photos count, [P] each, near where they were taken; there by default.
    """
    rank = ranks(photo_ids, seed)
    places = _places(*(viewed or (lon, lat)), grid)
    epsg, left, top = _seed_tiles(rank, places, grid, core)
    split = _splits(epsg, left, top, grid, block_km, shares, seed)
    near = np.zeros(len(epsg), dtype=bool)
    if buffer_m:
        near = (split != None) & (_splits(epsg, left, top, grid, block_km, shares, seed, buffer_m) == None)  # noqa: E711
        split[near] = None
    photo, tile, row, col = _members(epsg, left, top, places, grid, reach)
    order = np.lexsort((rank[photo], tile))
    photo, tile, row, col = photo[order], tile[order], row[order], col[order]
    if viewed is not None:
        row, col = _cameras(lon[photo], lat[photo], epsg[tile], left[tile], top[tile], grid)
    first = np.searchsorted(tile, np.arange(len(epsg)))
    kept = np.arange(len(tile)) - first[tile] < max_photos
    usable = np.array([s is not None for s in split], dtype=bool)
    number = np.cumsum(usable) - 1
    paired = usable[tile] & kept
    pairs = pd.DataFrame({'tile': number[tile[paired]], 'photo': photo[paired], 'row': row[paired], 'col': col[paired]})
    rows = np.flatnonzero(usable)
    tiles = pd.DataFrame(
        {
            'tile_id': grid.tile_ids(epsg[rows], left[rows], top[rows]),
            'epsg': epsg[rows],
            'left': left[rows],
            'top': top[rows],
            'split': pd.Series(split[rows], dtype='str'),
        }
    )
    in_tile, crowded, kept_away = np.zeros((3, len(lon)), dtype=bool)
    in_tile[pairs['photo']] = True
    crowded[photo[usable[tile]]] = True
    kept_away[photo[near[tile]]] = True
    lost = np.flatnonzero(~in_tile)
    reason = pd.Series(
        np.select(
            [crowded[lost], kept_away[lost]],
            [f'tile already has {max_photos} photos', f'tile lies within {buffer_m:g} m of another split'],
            'tile touches two splits',
        )
    )
    return Plan(tiles, pairs, pd.DataFrame({'photo': lost, 'reason': reason.astype('category')}))


def ahead(lon: Floats, lat: Floats, heading_deg: Floats, metres: float) -> tuple[Floats, Floats]:
    """Places before cameras, along the ellipsoid; where a heading is NaN, the camera's own.

    Places that UTM does not reach stay the camera's, too.
    """
    known = np.isfinite(heading_deg)
    there = [lon.copy(), lat.copy()]
    far = np.full(int(known.sum()), metres)
    east, north, _ = Geod(ellps='WGS84').fwd(lon[known], lat[known], heading_deg[known], far)
    within = (north >= UTM_SOUTH_LIMIT) & (north <= UTM_NORTH_LIMIT)
    there[0][known] = np.where(within, east, lon[known])
    there[1][known] = np.where(within, north, lat[known])
    return there[0], there[1]


def _cameras(lon: Floats, lat: Floats, epsg: Ints, left: Floats, top: Floats, grid: TileGrid) -> tuple[Floats, Floats]:
    """Rows and columns of cameras in the tiles of their photos."""
    row, col = np.empty(len(lon)), np.empty(len(lon))
    for zone in np.unique(epsg):
        mine = epsg == zone
        row[mine], col[mine] = grid.row_col(*project(lon[mine], lat[mine], int(zone)), left[mine], top[mine])
    return row, col


@dataclass(frozen=True)
class _Places:
    """Where photos lie in metres: once in their own zone, and once more in any zone whose tiles could hold them."""

    photo: Ints
    zone: Ints
    """EPSG codes; rows of one zone stand together."""
    x: Floats
    y: Floats
    own: npt.NDArray[np.bool_]
    """Whether the zone is the photo's own, where it may seed a tile."""


def _places(lon: Floats, lat: Floats, grid: TileGrid) -> _Places:
    own = utm_epsg(lon, lat)
    reach_lat = 1.5 * grid.side_m / SHORTEST_DEGREE_M
    reach_lon = reach_lat / np.maximum(np.cos(np.deg2rad(np.clip(np.abs(lat) + reach_lat, 0, 89))), 0.01)
    photos, zones = [np.arange(len(lon))], [own]
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            zone = utm_epsg((lon + dx * reach_lon + 180) % 360 - 180, np.clip(lat + dy * reach_lat, -90, 90))
            other = np.flatnonzero(zone != own)
            photos.append(other)
            zones.append(zone[other])
    photo, zone = np.concatenate(photos), np.concatenate(zones)
    near = np.unique(np.stack([zone[len(lon) :], photo[len(lon) :]]), axis=1)  # a corner is reached from three sides
    photo, zone = np.concatenate([photo[: len(lon)], near[1]]), np.concatenate([own, near[0]])
    is_own = np.arange(len(photo)) < len(lon)
    order = np.argsort(zone, kind='stable')
    photo, zone, is_own = photo[order], zone[order], is_own[order]
    x, y = np.empty(len(photo)), np.empty(len(photo))
    for start, stop in _runs(zone):
        rows = photo[start:stop]
        x[start:stop], y[start:stop] = project(lon[rows], lat[rows], int(zone[start]))
    return _Places(photo, zone, x, y, is_own)


def _runs(values: Ints) -> list[tuple[int, int]]:
    """Start and stop of the runs of equal values in a sorted column."""
    edges = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True)) if len(values) else []


_SPAN = 1 << 24
"""More cells than a zone has in either direction, so that one number names a cell; the next cell right is 1 more, the
next one up `_SPAN` more, and the next zone `_SPAN` squared more."""


def _cells(zone: Ints, x: Floats, y: Floats, side: float) -> Ints:
    """Number of the square of one tile's side that holds each position; unique over all zones."""
    i = np.floor(x / side).astype(np.int64) + _SPAN // 2
    j = np.floor(y / side).astype(np.int64) + _SPAN // 2
    return ((zone % 1000) * _SPAN + j) * _SPAN + i


class _Inside(NamedTuple):
    """Positions in tiles: places among both, row and column in pixels."""

    position: Ints
    tile: Ints
    row: Floats
    col: Floats


@dataclass
class _Tiles:
    """Tiles sorted by the cells of their corners.

    A tile is filed under the cell of its top left corner, so one that holds a position is filed under the position's
    own cell, the one to the left, the one above, or the one between those two.
    """

    corner: Ints
    left: Floats
    top: Floats

    def holding(self, cell: Ints, x: Floats, y: Floats, grid: TileGrid, part: float) -> _Inside:
        """Which positions lie in a part of which tiles.

        Args:
            cell: of each position; sorted ones are looked up several times faster.
            x: metres, with `y` the position.
            y: metres.
            grid: shape of the tiles.
            part: share of the tile's side, as of `TileGrid.holds`.
        """
        positions, tiles = [], []
        for up in (0, _SPAN):
            low = np.searchsorted(self.corner, cell + (up - 1), side='left')
            count = np.searchsorted(self.corner, cell + up, side='right') - low
            positions.append(np.repeat(np.arange(len(cell)), count))
            tiles.append(np.arange(len(positions[-1])) + np.repeat(low - (np.cumsum(count) - count), count))
        at, tile = np.concatenate(positions), np.concatenate(tiles)
        row, col = grid.row_col(x[at], y[at], self.left[tile], self.top[tile])
        inside = grid.holds(row, col, part)
        return _Inside(at[inside], tile[inside], row[inside], col[inside])

    def add(self, more: _Tiles) -> None:
        """Take in more tiles."""
        at = np.searchsorted(self.corner, more.corner, side='right')
        self.corner = np.insert(self.corner, at, more.corner)
        self.left, self.top = np.insert(self.left, at, more.left), np.insert(self.top, at, more.top)


def _seed_tiles(rank: Ints, places: _Places, grid: TileGrid, core: float) -> tuple[Ints, Floats, Floats]:
    """Visit the photos by rank; return zone, left and top of the tiles they seed, in that order.

    Photos are visited in portions, each at most as large as all before. Most photos of a portion lie in tiles that are
    there already; the few others are decided among themselves (`_first_among`).
    """
    order = np.lexsort((~places.own, rank[places.photo]))  # each photo's own zone first
    begins = np.append(np.flatnonzero(places.own[order]), len(order))  # where each photo's entries begin
    tiles = _Tiles(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))
    seeds = [np.zeros(0, dtype=np.int64)]
    start, photos = 0, len(begins) - 1
    while start < photos:
        stop = min(photos, start + min(max(start, _FIRST_TOGETHER), _VISITED_TOGETHER))
        seeds.append(_visit(order[begins[start] : begins[stop]], places, tiles, grid, core))
        start = stop
    rows = np.concatenate(seeds)
    left, top = grid.corner(places.x[rows], places.y[rows])
    return places.zone[rows], left, top


def _visit(entries: Ints, places: _Places, tiles: _Tiles, grid: TileGrid, core: float) -> Ints:
    """Visit some photos; return the entries that seed a tile, in the order of the visit, and add their tiles.

    Args:
        entries: of these photos, one photo after another, each photo's own zone first.
        places: of all photos.
        tiles: those that were seeded before; more are added.
        grid: shape of the tiles.
        core: as of `make_plan`.
    """
    photo = np.cumsum(places.own[entries]) - 1  # its turn among these
    cell = _cells(places.zone[entries], places.x[entries], places.y[entries], grid.side_m)
    by_cell = np.argsort(cell, kind='stable')
    entries, photo, cell = entries[by_cell], photo[by_cell], cell[by_cell]
    x, y = places.x[entries], places.y[entries]
    undecided = np.ones(photo.max(initial=-1) + 1, dtype=bool)
    undecided[photo[tiles.holding(cell, x, y, grid, core).position]] = False
    some = undecided[photo]
    entries, photo, cell, x, y = entries[some], photo[some], cell[some], x[some], y[some]
    own = np.flatnonzero(places.own[entries])
    left, top = grid.corner(x[own], y[own])
    corner = _cells(places.zone[entries[own]], left, top, grid.side_m)
    by_corner = np.argsort(corner, kind='stable')
    own, could = own[by_corner], _Tiles(corner[by_corner], left[by_corner], top[by_corner])
    inside = could.holding(cell, x, y, grid, core)
    earlier, later = photo[own[inside.tile]], photo[inside.position]
    first = earlier < later
    seeds = _first_among(earlier[first], later[first], undecided)[photo[own]]
    tiles.add(_Tiles(could.corner[seeds], could.left[seeds], could.top[seeds]))
    own = own[seeds]
    return entries[own[np.argsort(photo[own])]]


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


def _splits(
    epsg: Ints,
    left: Floats,
    top: Floats,
    grid: TileGrid,
    block_km: float,
    shares: dict[str, float],
    seed: int,
    margin_m: float = 0.0,
) -> npt.NDArray[np.object_]:
    """The split of every tile with a margin around it, None where its blocks disagree."""
    split = np.full(len(epsg), None, dtype=object)
    points = 1 + math.ceil((grid.side_m + 2 * margin_m) / (_BLOCK_SHARE * 1000 * block_km))
    order = np.argsort(epsg, kind='stable')
    for start, stop in _runs(epsg[order]):
        here = order[start:stop]
        zone = int(epsg[here[0]])
        blocks = blocks_touched(*grid.box_around(zone, left[here], top[here], margin_m), block_km, points)
        doubtful = (blocks != blocks[:, :1]).any(axis=1)  # only near a block's edge the exact outline matters
        if doubtful.any():
            exact = grid.bounds_lonlat(zone, left[here[doubtful]], top[here[doubtful]], margin_m)
            blocks[doubtful] = blocks_touched(*exact, block_km, points)
        names = split_of_blocks(blocks, shares, seed)
        agree = (names == names[:, :1]).all(axis=1)
        split[here[agree]] = names[agree, 0]
    return split


def _members(
    epsg: Ints, left: Floats, top: Floats, places: _Places, grid: TileGrid, reach: float
) -> tuple[Ints, Ints, Floats, Floats]:
    """Every photo within the reach of every tile: photo and tile numbers, row and column in pixels."""
    corner = _cells(epsg, left, top, grid.side_m)
    by_cell = np.argsort(corner, kind='stable')
    tiles = _Tiles(corner[by_cell], left[by_cell], top[by_cell])
    parts = [_Inside(*np.zeros((2, 0), dtype=np.int64), *np.zeros((2, 0)))]
    for start, stop in _runs(places.zone):  # zone by zone: the candidates of all zones together would fill the memory
        x, y = places.x[start:stop], places.y[start:stop]
        inside = tiles.holding(_cells(places.zone[start:stop], x, y, grid.side_m), x, y, grid, reach)
        parts.append(inside._replace(position=places.photo[start:stop][inside.position], tile=by_cell[inside.tile]))
    photo, tile, row, col = (np.concatenate(column) for column in zip(*parts, strict=True))
    return photo, tile, row, col
