"""Where a raster has pixels: an outline in degrees, from masks, nodata values and NaN of few of its blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer
from pyproj.exceptions import ProjError
from shapely.geometry.base import BaseGeometry

from grafalign.scenes.raster import Block, BlockError, Grid, Raster
from grafalign.scenes.regions import across_antimeridian
from grafalign.scenes.scene import ItemError
from grafalign.scenes.tiles import nodata_pixels

_MARGIN_PX = 2
"""An overview may show one pixel of many: a right-angled corner of the valid area may reach almost two pixels beyond
those that it shows."""
_EDGE_PARTS = 100
"""Edges are cut into pieces of this part of a raster's side: straight in its CRS, they are curves in degrees."""

Ints = npt.NDArray[np.int64]


def outline_of(raster: Raster, bands: list[int]) -> BaseGeometry:
    """The convex hull of a raster's valid pixels, of any of its bands.

    Args:
        raster: at full resolution the hull holds all valid pixels; of an overview it is grown by two of its pixels, so
            that at most valid areas that are smaller than these are left out.
        bands: numbers of the bands that hold data, from 1.

    Returns:
        Polygons in EPSG:4326, longitude first, cut at the antimeridian.

    Raises:
        ItemError: no pixel is valid, or the raster's CRS leads to no place on Earth.
        SceneReadError: the raster cannot be read.
    """
    begin, end = _reach(raster, bands)
    rows = np.flatnonzero(begin < end)
    if not len(rows):
        raise ItemError('the raster has no valid pixel')
    left, right = begin[rows] - _MARGIN_PX, end[rows] + _MARGIN_PX
    top, bottom = rows - _MARGIN_PX, rows + 1 + _MARGIN_PX
    corners = np.concatenate([np.stack([x, y], axis=1) for x in (left, right) for y in (top, bottom)])
    return _in_degrees(shapely.MultiPoint(corners).convex_hull, raster.grid)


def edge_of(grid: Grid) -> BaseGeometry:
    """The edge of a raster, whatever its pixels hold.

    Returns:
        Polygons in EPSG:4326, longitude first, cut at the antimeridian.

    Raises:
        ItemError: the raster's CRS leads to no place on Earth.
    """
    return _in_degrees(shapely.box(0, 0, grid.width, grid.height), grid)


def _in_degrees(outline: BaseGeometry, grid: Grid) -> BaseGeometry:
    """An outline in pixels, as far as it lies inside a raster, in degrees."""
    hull = outline & shapely.box(0, 0, grid.width, grid.height)
    hull = shapely.segmentize(hull, max(grid.width, grid.height) / _EDGE_PARTS)
    try:
        to_degrees = Transformer.from_crs(grid.crs_wkt, 'EPSG:4326', always_xy=True)
        positions = np.stack(to_degrees.transform(*(grid.transform @ tuple(shapely.get_coordinates(hull).T))), axis=1)
    except ProjError as error:
        raise ItemError(_NOWHERE, ' '.join(str(error).split())[:200]) from None
    if not np.isfinite(positions).all():
        raise ItemError(_NOWHERE)
    return across_antimeridian(shapely.Polygon(positions))


_NOWHERE = 'its coordinate reference system leads to no place on Earth; give it the right one (gdal_edit.py -a_srs)'


def _reach(raster: Raster, bands: list[int]) -> tuple[Ints, Ints]:
    """The first valid column of each row [H], and the one after the last; no columns where none is valid."""
    height, width = raster.grid.height, raster.grid.width
    nodata = () if raster.nodata is None else (raster.nodata,)
    by_value = bool(nodata) or any(np.issubdtype(raster.dtypes[band - 1], np.inexact) for band in bands)
    if not by_value and not raster.masked:
        return np.zeros(height, dtype=np.int64), np.full(height, width, dtype=np.int64)
    begin, end = np.full(height, width, dtype=np.int64), np.zeros(height, dtype=np.int64)
    bands = bands if by_value else bands[:1]

    def from_middle(block: Block) -> float:
        window = raster.window(block)
        return abs(window.col_off + window.width / 2 - width / 2)

    # the outermost first: what lies between valid pixels of the same rows says nothing new and is not read
    for block in sorted(raster.blocks(bands, [(0, 0, width, height)])[0], key=from_middle, reverse=True):
        (top, bottom), (left, right) = raster.window(block).toranges()
        rows = slice(top, bottom)
        if (begin[rows] <= left).all() and (end[rows] >= right).all():
            continue
        valid = _valid(raster, block, bands, nodata)
        begin[rows] = np.minimum(begin[rows], np.where(valid.any(1), left + valid.argmax(1), width))
        end[rows] = np.maximum(end[rows], np.where(valid.any(1), right - valid[:, ::-1].argmax(1), 0))
    return begin, end


def _valid(raster: Raster, block: Block, bands: list[int], nodata: tuple[float, ...]) -> npt.NDArray[np.bool_]:
    """Which pixels [h, w] of a block are valid in any band."""
    try:
        ((_, pixels, mask),) = raster.decode([block], bands)
    except BlockError:  # damage is for those to say who want these pixels
        window = raster.window(block)
        return np.ones((window.height, window.width), dtype=bool)
    valid = ~nodata_pixels(pixels, nodata) & np.isfinite(pixels).any(axis=0)
    return valid if mask is None else valid & mask
