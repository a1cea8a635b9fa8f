"""`--map`: one HTML page that shows where the tiles and photos of a plan lie, by split.

The page needs no network and stays under 5 MB whatever the plan's size. Positions are cells of the Web Mercator
quadtree, sorted along its Z curve. They go into the page at the deepest level whose list fits the page: level 25,
about a metre, for some hundred thousand photos; squares of tens of kilometres for millions over the whole Earth. The
page sums them to the coarser levels itself. The outlines of the tiles go along where there is room for all of them.

Numbers are packed as base64 of LEB128: seven bits a byte, the lowest first, and the high bit on all but the last byte.

`pages/land.json` is Natural Earth's 1:110m countries (public domain, naturalearthdata.com, as shipped among the test
fixtures of pyogrio's wheel, `naturalearth_lowres`): snapped to 0.1 degrees with `shapely.set_precision`, `union_all`
for the land, and the countries' boundaries less the land's own, joined with `line_merge`, for the borders.
"""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign.files import write_atomically
from grafalign.geo import TileGrid, unproject
from grafalign.pages import render
from grafalign.pairing.plan import Plan

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SPLITS = ('train', 'val', 'test')
LEFT_OUT = 'left out'
"""Photos that no tile of the plan holds: near an edge between splits, or in a tile that is full."""
DEPTH = 25
"""Deepest level of the quadtree: cells of 1.2 m at the equator."""
FINE = 27
"""Corners of tiles are whole numbers of the Earth's circumference over two to this power, 0.3 m at the equator."""
PHOTO_BYTES, TILE_BYTES = 1_500_000, 1_900_000
"""Room for either before base64, which adds a third."""
_AT_A_TIME = 1 << 20
_CIRCUMFERENCE_KM = 40_075.017
_MERCATOR_LIMIT = 85.05


def write_map(
    path: Path, title: str, grid: TileGrid, plan: Plan, lon: Floats, lat: Floats, metadata: list[tuple[str, str]]
) -> None:
    """Write the page.

    Args:
        path: the file, whose folder is made if need be.
        title: heading of the page.
        grid: shape of the tiles.
        plan: the tiles, and the photos in them.
        lon: degrees, one for every photo of the plan's table, [P].
        lat: degrees, [P].
        metadata: label and value of the rows of the table beside the map.
    """
    data = page_data(grid, plan, lon, lat)
    counts = data['tiles']['counts'], data['photos']['counts']
    page = render(
        'grafalign.pairing',
        'map_page.html',
        title=title,
        metadata=metadata,
        data=data,
        rows=[(name, name in SPLITS, *both) for name, *both in zip(data['splits'], *counts, strict=True)],
        total=(sum(data['tiles']['counts']), len(lon)),
        notes=_notes(data),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())


def page_data(grid: TileGrid, plan: Plan, lon: Floats, lat: Floats) -> dict[str, Any]:
    """What the page's script reads.

    Returns:
        `splits`, their names and last the one of photos left out; `grid`; `view`, the middle, width and height of the
        box around the photos in shares of the world's width; `photos` and `tiles`, each with `counts` by split, and
        `depth` and `cells` as `pack_cells` gives them; for tiles instead of those two, where they fit, `outlines` as
        `pack_outlines` gives them; `land`.
    """
    split = pd.Index(SPLITS).get_indexer(pd.Index(plan.tiles['split']))
    of_photo = np.full(len(lon), len(SPLITS), dtype=np.int8)
    of_photo[plan.pairs['photo'].to_numpy()] = split[plan.pairs['tile'].to_numpy()]
    x, y = grid_position(lon, lat, DEPTH)
    photos = pack_cells(quadkeys(x, y), of_photo, PHOTO_BYTES)
    outlines = pack_outlines(grid, plan, split, TILE_BYTES)
    tiles = {'outlines': outlines} if outlines is not None else pack_cells(_tile_keys(grid, plan), split, TILE_BYTES)
    return {
        'splits': [*SPLITS, LEFT_OUT],
        'grid': {'gsd_m': grid.gsd_m, 'size_px': grid.size_px},
        'view': _view(x, y),
        'photos': photos | {'counts': _counts(of_photo)},
        'tiles': tiles | {'counts': _counts(split)},
        'land': json.loads((files('grafalign.pages') / 'land.json').read_text(encoding='utf-8')),
    }


def grid_position(lon: Floats, lat: Floats, depth: int) -> tuple[Ints, Ints]:
    """Column (from 180 degrees west) and row (from the north) of the cell of a level that holds each place."""
    x, y = np.empty((2, len(lon)), dtype=np.int64)
    for at in range(0, len(lon), _AT_A_TIME):
        here = slice(at, at + _AT_A_TIME)
        east, south = mercator(lon[here], lat[here])
        x[here] = np.floor(east % 1 * 2**depth)
        y[here] = np.floor(south * 2**depth)
    return x, y


def mercator(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Web Mercator with the world from 0 to 1: eastward from 180 degrees west, southward from 85.05 degrees north."""
    sine = np.sin(np.deg2rad(np.clip(lat, -_MERCATOR_LIMIT, _MERCATOR_LIMIT)))
    return (np.asarray(lon) + 180) / 360, 0.5 - np.arctanh(sine) / (2 * np.pi)


def quadkeys(x: Ints, y: Ints) -> Ints:
    """Place along the Z curve: the bits of column and row in turn, so that two bits less is the cell above."""
    keys = np.empty(len(x), dtype=np.int64)
    for at in range(0, len(x), _AT_A_TIME):
        here = slice(at, at + _AT_A_TIME)
        keys[here] = _spread(x[here]) | _spread(y[here]) << 1
    return keys


def _spread(bits: Ints) -> Ints:
    """A zero between every two of up to 32 bits."""
    for step, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        bits = (bits | bits << step) & mask
    return bits


def pack_cells(keys: Ints, split: npt.NDArray[np.integer[Any]], room: int) -> dict[str, Any]:
    """Count positions by cell and split, at the deepest level that fits.

    Args:
        keys: `quadkeys` at level `DEPTH`.
        split: number of the split of each, up to `len(SPLITS)`.
        room: bytes before base64.

    Returns:
        `depth`, the level, and `cells`, two numbers for each split in each cell in the order of the Z curve: the steps
        from the cell before, times the number of splits, plus the split; and the count.
    """
    kinds = len(SPLITS) + 1
    coded = keys * kinds + split
    coded.sort()
    keys, split = np.divmod(coded, kinds)
    del coded
    for depth in range(DEPTH, -1, -1):
        cell = keys >> 2 * (DEPTH - depth)
        new = np.diff(cell, prepend=-1) > 0
        if 2 * np.count_nonzero(new) > room:  # no cell takes less than two bytes
            continue
        counts = np.bincount((np.cumsum(new) - 1) * kinds + split)
        entries = np.flatnonzero(counts)
        at, kind = np.divmod(entries, kinds)
        steps = np.diff(cell[new][at], prepend=0)
        packed = varints(np.stack([steps * kinds + kind, counts[entries]], axis=1).ravel())
        if len(packed) <= room:
            break
    return {'depth': depth, 'cells': _base64(packed)}


def pack_outlines(grid: TileGrid, plan: Plan, split: Ints, room: int) -> str | None:
    """The tiles one by one, or None if they do not fit.

    Thirteen numbers a tile, the signed ones (all but the first two) as 2n or -2n - 1 and as steps from the tile before:
    split; photos; EPSG; left and top in pixels; column and row of the top left corner at level `FINE`; from there to
    the top right corner; from there to the bottom left corner; and what the bottom right corner lies off the
    parallelogram. Columns go on past the antimeridian. Edges a few kilometres long are straight to less than a metre.
    """
    if 12 * len(plan.tiles) > room:
        return None
    epsg, left, top = (plan.tiles[c].to_numpy() for c in ('epsg', 'left', 'top'))
    x, y = np.empty((2, len(epsg), 4))
    for zone in np.unique(epsg):
        here = np.flatnonzero(epsg == zone)
        lon, lat = unproject(
            left[here, None] + grid.side_m * np.array([0, 1, 0, 1]),
            top[here, None] - grid.side_m * np.array([0, 0, 1, 1]),
            int(zone),
        )
        x[here], y[here] = mercator(lon, lat)
    x = x[:, :1] + (x - x[:, :1] + 0.5) % 1 - 0.5
    corners = np.round(np.stack([x, y], axis=-1) * 2**FINE).astype(np.int64)
    origin = corners[:, 0]
    right, down = corners[:, 1] - origin, corners[:, 2] - origin
    off = corners[:, 3] - origin - right - down
    middle = (origin + (right + down) // 2) % 2**FINE >> FINE - DEPTH
    order = np.argsort(quadkeys(middle[:, 0], middle[:, 1]), kind='stable')
    pixels = np.round(np.stack([left, top], axis=1) / grid.gsd_m).astype(np.int64)
    columns = np.column_stack([epsg, pixels, origin, right, down, off])
    steps = np.diff(columns[order], axis=0, prepend=0)
    photos = np.bincount(plan.pairs['tile'].to_numpy(), minlength=len(epsg))
    packed = varints(np.column_stack([split[order], photos[order], steps << 1 ^ steps >> 63]).ravel())
    return _base64(packed) if len(packed) <= room else None


def _tile_keys(grid: TileGrid, plan: Plan) -> Ints:
    """Quadkeys of the tiles' middles."""
    epsg, left, top = (plan.tiles[c].to_numpy() for c in ('epsg', 'left', 'top'))
    keys = np.empty(len(epsg), dtype=np.int64)
    order = np.argsort(epsg, kind='stable')
    for here in np.split(order, np.flatnonzero(np.diff(epsg[order])) + 1):
        lon, lat = unproject(left[here] + grid.side_m / 2, top[here] - grid.side_m / 2, int(epsg[here[0]]))
        keys[here] = quadkeys(*grid_position(lon, lat, DEPTH))
    return keys


def varints(values: Ints) -> bytes:
    """Whole numbers from 0 up as LEB128."""
    length = np.ones(len(values), dtype=np.int64)
    for bits in range(7, 63, 7):
        length += values >> bits > 0
    stop = np.cumsum(length)
    packed = np.empty(int(stop[-1]) if len(stop) else 0, dtype=np.uint8)
    for k in range(int(length.max(initial=0))):
        has = length > k
        more = (length[has] > k + 1) << 7
        packed[(stop - length)[has] + k] = values[has] >> 7 * k & 127 | more
    return packed.tobytes()


def _base64(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


def _counts(split: npt.NDArray[np.integer[Any]]) -> list[int]:
    return np.bincount(split, minlength=len(SPLITS) + 1).tolist()


def _view(x: Ints, y: Ints) -> list[float]:
    """Middle, width and height of the box around all photos, across the antimeridian where that is narrower."""
    if not len(x):
        return [0.5, 0.5, 1.0, 1.0]
    full, bits = 2**DEPTH, 12
    taken = np.flatnonzero(np.bincount(x >> DEPTH - bits))
    gaps = np.diff(taken, append=taken[0] + 2**bits)
    start = int(taken[(np.argmax(gaps) + 1) % len(taken)]) << DEPTH - bits
    east = (x - start) % full
    west, width, north, height = int(east.min()), int(np.ptp(east)), int(y.min()), int(np.ptp(y))
    return [(start + west + width / 2) / full % 1, (north + height / 2) / full, width / full, height / full]


def _notes(data: dict[str, Any]) -> list[str]:
    notes, photos, tiles = [], data['photos'], data['tiles']
    if photos['depth'] < DEPTH:
        notes.append(f'Photos are too many to show one by one: counted in squares of {_side(photos["depth"])}.')
    if 'outlines' not in tiles:
        notes.append(f'Tiles are too many to outline: counted by their middles in squares of {_side(tiles["depth"])}.')
    return notes


def _side(depth: int) -> str:
    km = _CIRCUMFERENCE_KM / 2**depth
    # at the equator, and less elsewhere
    return f'{1000 * km:.2g} m' if km < 1 else f'{km:.2g} km' if km < 100 else f'{km:.0f} km'
