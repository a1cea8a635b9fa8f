"""GRAFT's greedy rule: from photo positions to tiles, independent of the order of the rows.

Photos are visited in a fixed pseudo-random order (a hash of photo id and seed). A photo that no tile holds yet seeds a
tile centred on it; in the end every photo inside a tile belongs to it, and at most `max_photos` are kept per tile,
chosen by the same hash. Tiles that touch blocks of two splits are dropped, so that no pixel is on both sides.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from grafalign.geo import TileGrid, blocks_touched, project, unproject, utm_epsg

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Tiles and the photos in them."""

    tiles: gpd.GeoDataFrame
    """tile_id, epsg, left, top (metres), split, geometry (EPSG:4326)."""
    pairs: pd.DataFrame
    """tile, photo (row numbers), row, col (pixels)."""
    dropped: pd.DataFrame
    """Photos in no tile of the plan: photo (row number), reason."""


def visiting_order(photo_ids: list[str], seed: int) -> Ints:
    """Rank of every photo in the pseudo-random order; depends on the ids and the seed alone."""
    key = seed.to_bytes(8, 'little', signed=True)
    hashes = [hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in photo_ids]
    order = np.lexsort((np.array(photo_ids, dtype=object), np.array(hashes, dtype='S8')))
    rank = np.empty(len(photo_ids), dtype=np.int64)
    rank[order] = np.arange(len(photo_ids))
    return rank


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
    photos: gpd.GeoDataFrame, grid: TileGrid, max_photos: int, seed: int, block_km: float, shares: dict[str, float]
) -> Plan:
    """Plan the tiles for a photo table.

    Args:
        photos: photo table (EPSG:4326) with unique `photo_id`.
        grid: shape of the tiles.
        max_photos: photos kept per tile.
        seed: seed of the visiting order and of the splits.
        block_km: side of the split blocks.
        shares: share of each split.
    """
    lon, lat = photos.geometry.x.to_numpy(dtype=float), photos.geometry.y.to_numpy(dtype=float)
    rank = visiting_order(photos['photo_id'].tolist(), seed)
    zones = _zones_within_reach(lon, lat, grid)
    epsg, left, top = _seed_tiles(lon, lat, rank, zones, grid)
    photo, tile, row, col = _members(epsg, left, top, zones, grid)
    order = np.lexsort((rank[photo], tile))
    photo, tile, row, col = photo[order], tile[order], row[order], col[order]
    first = np.searchsorted(tile, np.arange(len(epsg)))
    kept = np.arange(len(tile)) - first[tile] < max_photos

    split = np.empty(len(epsg), dtype=object)
    boxes = np.empty(len(epsg), dtype=object)
    for zone in np.unique(epsg):
        here = epsg == zone
        west, south, east, north = grid.bounds_lonlat(int(zone), left[here], top[here])
        names = split_of_blocks(blocks_touched(west, south, east, north, block_km), shares, seed)
        agree = (names == names[:, :1]).all(axis=1)
        split[np.flatnonzero(here)[agree]] = names[agree, 0]
        boxes[here] = _polygons(int(zone), left[here], top[here], grid)
    usable = np.array([s is not None for s in split], dtype=bool)
    number = np.cumsum(usable) - 1
    pairs = pd.DataFrame({'tile': number[tile], 'photo': photo, 'row': row, 'col': col})[usable[tile] & kept]
    tiles = gpd.GeoDataFrame(
        {
            'tile_id': [grid.tile_id(int(e), x, y) for e, x, y in zip(epsg, left, top, strict=True)],
            'epsg': epsg,
            'left': left,
            'top': top,
            'split': split,
        },
        geometry=boxes,
        crs='EPSG:4326',
    )[usable].reset_index(drop=True)
    tiles['split'] = tiles['split'].astype('string')
    lost = np.setdiff1d(np.arange(len(photos)), pairs['photo'])
    crowded = np.isin(lost, photo[usable[tile]])
    reason = np.where(crowded, f'tile already has {max_photos} photos', 'tile touches two splits')
    return Plan(tiles, pairs.reset_index(drop=True), pd.DataFrame({'photo': lost, 'reason': reason}))


@dataclass(frozen=True)
class _ZonePhotos:
    """The photos that a tile of one zone could hold, in that zone's metres."""

    rows: Ints
    x: Floats
    y: Floats


def _zones_within_reach(lon: Floats, lat: Floats, grid: TileGrid) -> dict[int, _ZonePhotos]:
    """Photos by zone; a photo near a border is listed in both zones, as tiles of either may hold it."""
    reach_lat = 1.5 * grid.side_m / 110_000
    reach_lon = reach_lat / np.maximum(np.cos(np.deg2rad(np.clip(np.abs(lat) + reach_lat, 0, 89))), 0.01)
    members: dict[int, list[Ints]] = defaultdict(list)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            zone = utm_epsg((lon + dx * reach_lon + 180) % 360 - 180, np.clip(lat + dy * reach_lat, -90, 90))
            for value in np.unique(zone):
                members[int(value)].append(np.flatnonzero(zone == value))
    zones = {}
    for epsg in sorted(members):
        rows = np.unique(np.concatenate(members[epsg]))
        zones[epsg] = _ZonePhotos(rows, *project(lon[rows], lat[rows], epsg))
    return zones


def _seed_tiles(
    lon: Floats, lat: Floats, rank: Ints, zones: dict[int, _ZonePhotos], grid: TileGrid
) -> tuple[Ints, Floats, Floats]:
    """Visit the photos by rank; return zone, left and top of the tiles they seed, in that order."""
    side = grid.side_m
    places: dict[int, list[tuple[int, float, float]]] = defaultdict(list)  # photo -> (zone, x, y), own zone or not
    for zone, there in zones.items():
        for photo, x, y in zip(there.rows.tolist(), there.x.tolist(), there.y.tolist(), strict=True):
            places[photo].append((zone, x, y))
    own = utm_epsg(lon, lat).tolist()
    buckets: dict[tuple[int, int, int], list[tuple[float, float]]] = defaultdict(list)
    tiles: list[tuple[int, float, float]] = []
    for photo in np.argsort(rank).tolist():
        if any(_held(buckets, zone, x, y, side) for zone, x, y in places[photo]):
            continue
        zone, x, y = next(place for place in places[photo] if place[0] == own[photo])
        left, top = (float(v) for v in grid.corner(np.asarray(x), np.asarray(y)))
        buckets[zone, int(left // side), int(top // side)].append((left, top))
        tiles.append((zone, left, top))
    epsg, left_all, top_all = zip(*tiles, strict=True)
    return np.array(epsg, dtype=np.int64), np.array(left_all), np.array(top_all)


def _held(
    buckets: dict[tuple[int, int, int], list[tuple[float, float]]], zone: int, x: float, y: float, side: float
) -> bool:
    """Whether a tile holds the position; a tile is filed under the cell of its top left corner."""
    i, j = int(x // side), int(y // side)
    for a in (i - 1, i):
        for b in (j, j + 1):
            for left, top in buckets.get((zone, a, b), ()):
                if left <= x < left + side and top - side < y <= top:
                    return True
    return False


def _members(
    epsg: Ints, left: Floats, top: Floats, zones: dict[int, _ZonePhotos], grid: TileGrid
) -> tuple[Ints, Ints, Floats, Floats]:
    """Every photo in every tile: photo and tile numbers, row and column in pixels."""
    side = grid.side_m
    found: list[tuple[npt.NDArray[np.generic], ...]] = []
    for zone, there in zones.items():
        tiles = np.flatnonzero(epsg == zone)
        if not len(tiles):
            continue
        cell = pd.DataFrame({'photo': np.arange(len(there.rows)), 'i': there.x // side, 'j': there.y // side})
        for a in (0, 1):
            for b in (0, 1):
                spots = pd.DataFrame({'tile': tiles, 'i': left[tiles] // side + a, 'j': top[tiles] // side - b})
                both = cell.merge(spots, on=['i', 'j'])
                photo, tile = both['photo'].to_numpy(), both['tile'].to_numpy()
                row, col = grid.row_col(there.x[photo], there.y[photo], left[tile], top[tile])
                inside = grid.holds(row, col)
                found.append((there.rows[photo][inside], tile[inside], row[inside], col[inside]))
    photo, tile, row, col = (np.concatenate(part) for part in zip(*found, strict=True))
    return photo, tile, row, col


def _polygons(zone: int, left: Floats, top: Floats, grid: TileGrid) -> npt.NDArray[np.object_]:
    """Tile outlines in degrees, with the edges' middles so that they stay true in longitude and latitude."""
    s = grid.side_m
    ring = np.array([(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5), (0, 0)]) * s
    lon, lat = unproject(left[:, None] + ring[:, 0], top[:, None] - ring[:, 1], zone)
    wraps = (lon.max(1) - lon.min(1)) > 180
    lon = np.where(wraps[:, None] & (lon < 0), lon + 360, lon)
    return np.asarray(shapely.polygons(np.stack([lon, lat], axis=-1)), dtype=object)
