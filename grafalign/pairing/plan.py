"""GRAFT's greedy rule: from photo positions to tiles, independent of the order of the rows.

Photos are visited in a fixed pseudo-random order (a hash of photo id and seed). A photo that no tile holds yet seeds a
tile centred on it; in the end every photo inside a tile belongs to it, and at most `max_photos` are kept per tile,
chosen by the same hash. With a `core` a photo counts as held only in the inner part of a tile (ours: more tiles, which
overlap, from the same photos), and with a `reach` only photos in the inner part belong to it. Photos may count at a
place before their cameras; the rows and columns that are kept are the cameras'. Tiles that touch blocks
of two splits, or lie within a buffer of another split's block, are dropped: no pixel is on both sides, and no place is
shown from both either.

All steps go through the photos a portion at a time. Time grows with the number of photos; in memory are their
coordinates, their order, the tiles, and the pairs that are kept (`experiments/performance/planning.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyproj import Geod

from grafalign.geo import UTM_NORTH_LIMIT, UTM_SOUTH_LIMIT, TileGrid
from grafalign.pairing.members import members_of, rows_and_columns
from grafalign.pairing.seeds import Seeds, seed_tiles
from grafalign.pairing.splits import splits_of_tiles
from grafalign.pairing.zones import Floats
from grafalign.photos.ranks import visiting_order


@dataclass(frozen=True)
class Plan:
    """Tiles and the photos in them."""

    tiles: pd.DataFrame
    """tile_id, epsg, left, top (metres), split."""
    pairs: pd.DataFrame
    """tile, photo (row numbers), row, col (pixels); sorted by tile."""
    dropped: pd.DataFrame
    """Photos in no tile of the plan: photo (row number), reason."""


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
    order = visiting_order(photo_ids, seed)
    del photo_ids  # where the caller does not keep them, 2 GB of a hundred million photos
    pa.default_memory_pool().release_unused()
    at = viewed or (lon, lat)
    seeds = seed_tiles(order, *at, grid, core)
    split = splits_of_tiles(*seeds, grid, block_km, shares, seed)
    near = np.zeros(len(split), dtype=bool)
    if buffer_m:
        alone = splits_of_tiles(*seeds, grid, block_km, shares, seed, buffer_m) != None  # noqa: E711
        near = (split != None) & ~alone  # noqa: E711
        split[near] = None
    usable = split != None  # noqa: E711
    members = members_of(seeds, usable, near, order, *at, grid, reach, max_photos)
    del order
    number = np.cumsum(usable, dtype=members.tile.dtype) - 1
    row, col = rows_and_columns(seeds, members.tile, lon, lat, members.photo, grid)
    pairs = pd.DataFrame({'tile': number[members.tile], 'photo': members.photo, 'row': row, 'col': col}, copy=False)
    kept = Seeds(*(column[usable] for column in seeds))
    tiles = pd.DataFrame(
        {
            'tile_id': grid.tile_ids(*kept),
            'epsg': kept.epsg,
            'left': kept.left,
            'top': kept.top,
            'split': pd.Series(split[usable], dtype='str'),
        }
    )
    lost = np.ones(len(lon), dtype=bool)
    lost[members.photo] = False
    photo = np.flatnonzero(lost)
    reasons = [
        f'tile already has {max_photos} photos',
        f'tile lies within {buffer_m:g} m of another split',
        'tile touches two splits',
    ]
    reason = np.where(members.in_tile[photo], 0, np.where(members.in_near[photo], 1, 2))
    named = pd.Categorical.from_codes(reason, reasons).remove_unused_categories()
    return Plan(tiles, pairs, pd.DataFrame({'photo': photo, 'reason': named}))


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
