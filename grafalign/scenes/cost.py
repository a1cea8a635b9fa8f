"""What cutting would cost, from the places of the tiles and the layout of a few files: no pixel is read.

The blocks under the tiles follow from a scene's grid (`proj:transform` and `proj:shape` of its item) and the size of
its blocks; size and bytes of blocks are read from the headers of a few files and taken to hold for their collection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import Resampling

from grafalign.scenes.blocks import RUN_BYTES
from grafalign.scenes.opening import HEADER_BYTES
from grafalign.scenes.radiometry import BandSource
from grafalign.scenes.raster import Grid, Raster, pixel_metres
from grafalign.scenes.tiles import footprints
from grafalign.web.ranges import RangeReader

_SAMPLED_BLOCKS = 400


@dataclass(frozen=True)
class Layout:
    """How the files of one band of a collection are laid out."""

    grid: Grid
    block_width: int
    block_height: int
    block_bytes: float
    """Mean stored bytes of a block."""
    decoded_bytes: float
    """Bytes of a block when decoded."""
    header_seconds: float
    """Time the header took: about one request."""
    remote: bool
    asks_for_mask: bool = False
    """Whether a mask beside the file is asked for: one more request."""
    assumed: bool = False
    """No header could be read."""


@dataclass(frozen=True)
class FileCost:
    """What is needed of one file."""

    requests: int
    bytes: float
    blocks: int
    reads: int
    """Blocks that tiles would read one by one, each tile on its own."""
    decoded_bytes: float
    grid: Grid
    copied: npt.NDArray[np.bool_]
    """[tiles]: the tile lies on the file's grid and is copied, not resampled."""


def read_layout(band: BandSource, reader: RangeReader, gsd_m: float) -> Layout:
    """Read the header of one file.

    Raises:
        SceneReadError: the file cannot be opened.
    """
    started = time.perf_counter()
    raster = Raster(band.href, reader, gsd_m, data_bands=band.data_bands, nodata=bool(band.nodata), mask=band.mask)
    seconds = time.perf_counter() - started
    grid = raster.grid
    steps = range(0, grid.width, raster.block_width), range(0, grid.height, raster.block_height)
    corners = [(col, row) for row in steps[1] for col in steps[0]]
    picked = corners[:: max(1, len(corners) // _SAMPLED_BLOCKS)]
    blocks = [b for found in raster.blocks([band.index], [(c, r, 1, 1) for c, r in picked]) for b in found]
    stored = [b.nbytes for b in blocks if b.nbytes]
    bands = raster.count if raster.pixel_interleaved else 1
    decoded = raster.block_width * raster.block_height * np.dtype(raster.dtypes[band.index - 1]).itemsize * bands
    remote = '://' in band.href
    asks = remote and band.mask and not band.nodata and raster.nodata is None
    raster.close()
    mean = float(np.mean(stored)) if stored else 0.6 * decoded
    return Layout(grid, raster.block_width, raster.block_height, mean, float(decoded), seconds, remote, asks)


def assumed_layout(gsd_m: float) -> Layout:
    """A layout for files whose headers cannot be read: blocks of 512 px, 16 bits, packed to 60 percent."""
    decoded = 2.0 * 512**2
    grid = Grid('EPSG:32631', CRS.from_epsg(32631).to_wkt(), Affine.scale(gsd_m, -gsd_m), 10_980, 10_980)
    return Layout(grid, 512, 512, 0.6 * decoded, decoded, 0.1, True, assumed=True)


def item_grid(item: dict[str, Any], href: str, layout: Layout, boxes: Sequence[GeoBox], gsd_m: float) -> Grid:
    """The grid of one file of a scene: as its item states it (`proj:transform`, `proj:shape`), else about the tiles.

    Where the file has finer pixels than wanted, overviews of half the resolution each are taken to be there.
    """
    properties = item.get('properties') or {}
    assets = [a for a in (item.get('assets') or {}).values() if isinstance(a, dict) and a.get('href') == href]
    for place in (*assets, properties):
        transform, shape = place.get('proj:transform'), place.get('proj:shape')
        codes = [p.get(k) for p in (place, properties) for k in ('proj:code', 'proj:epsg')]
        code = next((c for c in codes if c), None)
        if not (transform and shape and code):
            continue
        try:
            crs = CRS.from_user_input(code)
            own = Affine(*(float(v) for v in transform[:6]))
            height, width = (int(v) for v in shape)
        except (CRSError, TypeError, ValueError):
            continue
        metres = pixel_metres(own, width, height, crs.to_wkt())
        factor = 2 ** max(0, math.floor(math.log2(1.001 * gsd_m / metres))) if metres else 1
        name = f'EPSG:{crs.to_epsg()}' if crs.to_epsg() else crs.to_string()
        return Grid(name, crs.to_wkt(), own * Affine.scale(factor), width=width // factor, height=height // factor)
    size = abs(layout.grid.transform.a)
    if layout.grid.crs_name != str(boxes[0].crs):
        size = gsd_m
    left, top = min(b.affine.c for b in boxes), max(b.affine.f for b in boxes)
    if layout.grid.crs_name == str(boxes[0].crs) and not layout.assumed:  # scenes of a collection share their grid
        left -= (left - layout.grid.transform.c) % size
        top += (layout.grid.transform.f - top) % size
    wkt = CRS.from_user_input(str(boxes[0].crs)).to_wkt()
    return Grid(str(boxes[0].crs), wkt, Affine(size, 0, left, 0, -size, top), width=1 << 16, height=1 << 16)


def file_cost(grid: Grid, layout: Layout, boxes: Sequence[GeoBox], resampling: Resampling) -> FileCost:
    """What tiles need of one file, block by block, with neighbours merged as the cutter does."""
    found = footprints(grid, boxes, resampling)
    windows = found.windows
    left, top = np.maximum(windows[:, 0], 0), np.maximum(windows[:, 1], 0)
    right = np.minimum(windows[:, 0] + windows[:, 2], grid.width)
    bottom = np.minimum(windows[:, 1] + windows[:, 3], grid.height)
    inside = (right > left) & (bottom > top)
    columns = -(-grid.width // layout.block_width)
    first = np.stack([left // layout.block_width, top // layout.block_height], axis=1)[inside]
    last = np.stack([(right - 1) // layout.block_width, (bottom - 1) // layout.block_height], axis=1)[inside]
    size = last - first + 1
    count = size.prod(axis=1)
    tile = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(tile)) - np.repeat(np.cumsum(count) - count, count)
    row, col = first[tile, 1] + number // size[tile, 0], first[tile, 0] + number % size[tile, 0]
    blocks: npt.NDArray[np.int64] = np.unique(row * columns + col)
    run = max(1, int(RUN_BYTES // max(layout.block_bytes, 1)))
    edges = np.flatnonzero(np.diff(blocks) > 1)
    lengths = np.diff(np.concatenate([[-1], edges, [len(blocks) - 1]])) if len(blocks) else np.array([], dtype=int)
    return FileCost(
        requests=1 + layout.asks_for_mask + int((-(-lengths // run)).sum()),
        bytes=HEADER_BYTES + layout.block_bytes * len(blocks),
        blocks=len(blocks),
        reads=len(tile),
        decoded_bytes=layout.decoded_bytes * len(blocks),
        grid=grid,
        copied=found.aligned,
    )
