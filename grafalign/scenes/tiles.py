"""The share of one file in one tile: which pixels are needed, and how they become the tile's pixels.

A tile on the file's own grid is a pure copy; any other is warped by GDAL with the recipe's resampling. No value is made
up: pixels that no valid source pixel covers are missing, and are told apart from zeros.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject

from grafalign.scenes.raster import Grid, Raster

Ints = npt.NDArray[np.int64]

_WEB_MERCATOR, _WEB_MERCATOR_RADIUS_M = 3857, 6_378_137.0
_ALIGNED_PX = 0.01
"""Grids that differ by less than this share of a pixel count as the same."""
_KERNEL_PX = {Resampling.nearest: 1, Resampling.bilinear: 2, Resampling.cubic: 3, Resampling.lanczos: 4}
"""Source pixels that a kernel reaches beyond the place it is asked for, at equal resolution."""


@dataclass(frozen=True)
class Footprints:
    """Which pixels of a grid N tiles need."""

    aligned: npt.NDArray[np.bool_]
    """[N]: the tile is a window of the raster, pixel for pixel."""
    windows: Ints
    """[N, 4]: col, row, width, height of the source pixels, which may reach beyond the raster."""
    scale: npt.NDArray[np.float64]
    """[N, 2]: source pixels per tile pixel along the tile's rows and columns."""


class TilePart:
    """A tile's pixels of one file, filled block by block.

    Args:
        raster: the file.
        box: the tile's grid.
        bands: C band numbers wanted, from 1.
        nodata: values of missing pixels.
        resampling: how to warp where the grids differ.
        aligned: whether the tile is a window of the raster, pixel for pixel.
        window: col, row, width, height of the source pixels it needs.
        scale: source pixels per tile pixel along the tile's rows and columns.
    """

    def __init__(
        self,
        raster: Raster,
        box: GeoBox,
        bands: list[int],
        nodata: Sequence[float],
        resampling: Resampling,
        aligned: bool,
        window: tuple[int, int, int, int],
        scale: tuple[float, float],
    ) -> None:
        self._raster, self._box, self._bands, self._nodata, self._resampling = raster, box, bands, nodata, resampling
        self.waiting = 0
        """Blocks that have not come yet."""
        self.not_finite = 0.0
        """Share of the source pixels that are NaN or infinite in any band, once `finish` was called."""
        self._aligned, self._scale = aligned, scale
        self._col, self._row, width, height = window
        # only what lies inside the raster can be read
        left, top = max(0, self._col), max(0, self._row)
        right, bottom = min(raster.grid.width, self._col + width), min(raster.grid.height, self._row + height)
        self.window = (left, top, max(0, right - left), max(0, bottom - top))
        """col, row, width, height in the file's pixels; zero wide or high where the tile lies beside the raster."""
        self._pixels: npt.NDArray[np.generic] | None = None
        self._valid: npt.NDArray[np.bool_] | None = None

    @property
    def empty(self) -> bool:
        """Whether the tile lies beside the raster."""
        return not (self.window[2] and self.window[3])

    def paste(
        self, band: int, col: int, row: int, pixels: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_] | None
    ) -> None:
        """Copy what a block at (col, row) has for this tile; `band` 0 is all bands, else a number from 1."""
        left, top, width, height = self.window
        if self._pixels is None:
            self._pixels = np.zeros((len(self._bands), height, width), dtype=pixels.dtype)
        x0, y0 = max(left, col), max(top, row)
        x1, y1 = min(left + width, col + pixels.shape[2]), min(top + height, row + pixels.shape[1])
        here = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        there = (slice(y0 - row, y1 - row), slice(x0 - col, x1 - col))
        if band == 0:
            self._pixels[:, *here] = pixels[:, *there]
        else:
            for index in (i for i, b in enumerate(self._bands) if b == band):
                self._pixels[index, *here] = pixels[0, *there]
        if valid is not None:
            if self._valid is None:
                self._valid = np.zeros((height, width), dtype=bool)
            self._valid[here] = valid[there]

    def finish(self) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
        """The tile's pixels [C, H, W] as stored (0 where missing), and the mask [H, W] of missing pixels.

        A pixel is missing where the file's mask says so, where any band is not a finite number, or where all of the
        wanted bands of this one file are nodata: the bands of one file share their footprint, and a dark lake that is 0
        in one band of an 8-bit picture is there.
        """
        size = self._box.shape
        shape = (len(self._bands), size[0], size[1])
        if self._pixels is None:
            return np.zeros(shape, dtype=self._raster.dtypes[self._bands[0] - 1]), np.ones(size, dtype=bool)
        source = self._pixels
        valid = np.ones(source.shape[1:], dtype=bool) if self._valid is None else self._valid
        finite = finite_pixels(source)
        if finite is not None:
            self.not_finite = 1 - float(finite.mean())
            valid &= finite
        valid &= ~nodata_pixels(source, self._nodata)
        self._pixels = self._valid = None
        left, top, width, height = self.window
        if self._aligned:
            pixels, missing = np.zeros(shape, dtype=source.dtype), np.ones(size, dtype=bool)
            here = (
                slice(top - self._row, top - self._row + height),
                slice(left - self._col, left - self._col + width),
            )
            pixels[:, *here] = np.where(valid, source, np.zeros((), source.dtype))
            missing[here] = ~valid
            return pixels, missing
        return self._warp(source, valid)

    def _warp(
        self, source: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
        """GDAL's warper, with validity as an alpha band, so that missing pixels take no part in any average.

        The scale is given, as GDAL would derive it from the bounding boxes: between two zones north is turned by some
        degrees, the box of the source is larger for it, and GDAL would blur as if pixels were being merged.
        """
        kept = source.dtype
        if kept == np.int8:  # in which no alpha of 255 can be written
            source = source.astype(np.int16)
        alpha = np.where(valid, 255, 0).astype(source.dtype)[None]
        out = np.zeros((len(self._bands) + 1, *self._box.shape), dtype=source.dtype)
        crs, transform = _seen_from(self._raster.grid, self._box)
        reproject(
            np.concatenate([np.where(valid, source, np.zeros((), source.dtype)), alpha]),
            out,
            src_transform=transform @ Affine.translation(*self.window[:2]),
            src_crs=crs,
            dst_transform=self._box.affine,
            dst_crs=str(self._box.crs),
            src_alpha=len(self._bands) + 1,
            dst_alpha=len(self._bands) + 1,
            resampling=self._resampling,
            SRC_ALPHA_MAX='255',
            DST_ALPHA_MAX='255',
            XSCALE=f'{min(1.0, 1 / self._scale[0]):.9g}',
            YSCALE=f'{min(1.0, 1 / self._scale[1]):.9g}',
        )
        missing = out[-1] == 0
        pixels = out[:-1].astype(kept, copy=False)
        pixels[:, missing] = 0
        return pixels, missing


def finite_pixels(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_] | None:
    """Which pixels [H, W] of [C, H, W] are finite in all bands; None where the data type has no other numbers.

    NaN is never a measurement, whatever a file or item says or does not say.
    """
    return np.isfinite(pixels).all(axis=0) if np.issubdtype(pixels.dtype, np.inexact) else None


def nodata_pixels(pixels: npt.NDArray[np.generic], nodata: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Which pixels [H, W] of [C, H, W] are nodata in all bands.

    Values are compared in the data type of the pixels, as an item may round them.
    """
    empty = np.zeros(pixels.shape, dtype=bool)
    for value in nodata:
        stored = _as_stored(value, pixels.dtype)
        if stored is not None:
            empty |= pixels == stored
    return np.asarray(empty.all(axis=0)) if len(nodata) else np.zeros(pixels.shape[1:], dtype=bool)


def _as_stored(value: float, dtype: np.dtype[Any]) -> Any:
    """A value in a data type; None where no pixel of the type can have it."""
    if not math.isfinite(value):
        return None  # of floating point, and missing anyway
    if np.issubdtype(dtype, np.integer):
        known = np.iinfo(dtype)
        if value != round(value) or not known.min <= value <= known.max:
            return None
        return dtype.type(int(value))
    with np.errstate(over='ignore'):
        return dtype.type(value)


def footprints(grid: Grid, boxes: Sequence[GeoBox], resampling: Resampling) -> Footprints:
    """Find the pixels of a grid that tiles need; all tiles have one shape."""
    size_y, size_x = boxes[0].shape
    steps, flat = np.linspace(0, 1, 9), np.zeros(9)
    edge = np.concatenate([[steps, flat], [steps, flat + 1], [flat, steps], [flat + 1, steps]], axis=1)
    edge *= np.array([[size_x], [size_y]])
    aligned = np.zeros(len(boxes), dtype=bool)
    windows = np.empty((len(boxes), 4), dtype=np.int64)
    scale = np.ones((len(boxes), 2))
    to_pixel: Affine = ~grid.transform
    by_crs: dict[str, list[int]] = defaultdict(list)
    for number, box in enumerate(boxes):
        by_crs[str(box.crs)].append(number)
    for crs, numbers in by_crs.items():
        x, y = (np.stack(v) for v in zip(*(boxes[n].affine @ edge for n in numbers), strict=True))
        if grid.crs_name != crs:
            # two datums of one projection (NAD 83 and WGS 84 in UTM) may be one grid for all that a pixel can tell
            x, y = _transformer(crs, grid.crs_wkt).transform(x, y)
            if (period := _period(grid.crs_wkt)) is not None:
                x = _unwrapped(x, grid, period)
        col, row = to_pixel @ (x, y)
        seen = np.isfinite(col).all(1) & np.isfinite(row).all(1)  # else out of the projection's reach
        col, row = np.where(seen[:, None], col, 2.0 * grid.width), np.where(seen[:, None], row, 2.0 * grid.height)
        left, top = np.round(col[:, 0]), np.round(row[:, 0])
        off = np.maximum(np.abs(col - left[:, None] - edge[0]).max(1), np.abs(row - top[:, None] - edge[1]).max(1))
        same = off <= _ALIGNED_PX
        across = np.hypot(col[:, 8] - col[:, 0], row[:, 8] - row[:, 0]) / size_x  # along the top edge
        down = np.hypot(col[:, 26] - col[:, 18], row[:, 26] - row[:, 18]) / size_y  # along the left edge
        scale[numbers] = np.maximum(np.stack([across, down], axis=1), 1e-9)
        margin = np.ceil(_KERNEL_PX.get(resampling, 2) * np.maximum(1.0, scale[numbers].max(1))) + 1
        west, north = np.floor(col.min(1)) - margin, np.floor(row.min(1)) - margin
        east, south = np.ceil(col.max(1)) + margin, np.ceil(row.max(1)) + margin
        aligned[numbers] = same
        windows[numbers] = np.where(
            same[:, None],
            np.stack([left, top, np.full_like(left, size_x), np.full_like(left, size_y)], axis=1),
            np.stack([west, north, east - west, south - north], axis=1),
        )
    return Footprints(aligned, windows, scale)


def _unwrapped(x: npt.NDArray[np.float64], grid: Grid, period: float) -> npt.NDArray[np.float64]:
    """Positions [N, points] of tiles along a CRS's x, as the raster counts them.

    Longitudes are the same modulo 360, and rasters use that: 0 to 360, or 179.99 to 180.01 over the antimeridian, where
    the transformation gives -180 to 180. A tile's own points stay together, and all of it goes to where the raster is.

    >>> # a raster from 179.9 to 180.1, a tile from 179.99 over the line to -179.99:
    >>> # 179.99, -179.99 -> 179.99, 180.01
    """
    if _is_whole_world(grid, period):
        return x  # a tile over its seam takes both ends of the rows: the window is all of them
    x = x[:, :1] + np.remainder(x - x[:, :1] + period / 2, period) - period / 2
    middle = (grid.transform @ (grid.width / 2, grid.height / 2))[0]
    return x + period * np.round((middle - x.mean(1, keepdims=True)) / period)


def _is_whole_world(grid: Grid, period: float) -> bool:
    """Whether a raster goes once around, from where the CRS begins to count: GDAL then finds every place by itself."""
    west = (grid.transform @ (0, 0))[0]
    return abs(grid.width * grid.transform.a) >= 0.999 * period and abs(west + period / 2) < 0.01 * period


@lru_cache(maxsize=256)
def _period(wkt: str) -> float | None:
    """After how many units a CRS's x comes back to the same place: 360 degrees, or once around in Web Mercator."""
    crs = CRS.from_wkt(wkt)
    if crs.is_geographic:
        return 2 * math.pi / crs.axis_info[0].unit_conversion_factor
    return 2 * math.pi * _WEB_MERCATOR_RADIUS_M if crs.to_epsg() == _WEB_MERCATOR else None


def _seen_from(grid: Grid, box: GeoBox) -> tuple[str, Affine]:
    """A raster's CRS and transform as GDAL shall have them for a tile.

    GDAL counts longitudes as the raster does, up to once around, but knows no such thing of Web Mercator: there the CRS
    is centred on the tile where the tile lies near its seam or the raster counts on beyond it.
    """
    period = _period(grid.crs_wkt)
    if period is None or _is_whole_world(grid, period):
        return grid.crs_wkt, grid.transform
    middle = (grid.transform @ (grid.width / 2, grid.height / 2))[0]
    if CRS.from_wkt(grid.crs_wkt).is_geographic:
        shift = period * round(middle / period) if abs(middle) > period else 0.0
        return grid.crs_wkt, Affine.translation(-shift, 0) @ grid.transform
    size_y, size_x = box.shape
    reached = _transformer(str(box.crs), grid.crs_wkt).transform(*(box.affine @ (size_x / 2, size_y / 2)))[0]
    turns = round((middle - reached) / period)
    if not turns and abs(reached) < 0.49 * period:
        return grid.crs_wkt, grid.transform
    radius, lon = _WEB_MERCATOR_RADIUS_M, math.degrees(reached / _WEB_MERCATOR_RADIUS_M)
    crs = f'+proj=merc +a={radius} +b={radius} +lon_0={lon!r} +units=m +nadgrids=@null +wktext +no_defs'
    return crs, Affine.translation(-(reached + turns * period), 0) @ grid.transform


@lru_cache(maxsize=256)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)
