"""One picture from above as a tile: its middle square, at the size of all tiles, and what it says of its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.warp import transform

from grafalign.datasets.pictures import RASTERS, coloured, read_picture
from grafalign.foreign.rasters import open_raster
from grafalign.geo import unit_metres

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Square:
    """The middle of a picture, in its pixels."""

    top: int
    left: int
    side: int

    @classmethod
    def middle(cls, height: int, width: int) -> Square:
        """The largest square around the middle."""
        side = min(height, width)
        return cls((height - side) // 2, (width - side) // 2, side)


@dataclass(frozen=True)
class Georeference:
    """Where a georeferenced picture lies."""

    crs: str
    """As WKT."""
    affine: Any
    """From columns and rows of the picture to coordinates."""
    gsd_m: float
    around: float | None
    """Where x goes around the Earth in degrees: that of the picture's middle, which may be 0 to 360."""

    def row_col(self, lon: float, lat: float) -> tuple[float, float]:
        """Where a position lies in the picture, in pixels."""
        (x,), (y,) = transform('EPSG:4326', self.crs, [lon], [lat])
        if self.around is not None:
            x += 360 * round((self.around - x) / 360)
        col, row = ~self.affine @ (x, y)
        return row, col

    def outline(self, square: Square) -> Any:
        """A square of the picture in degrees (EPSG:4326); across the antimeridian longitudes exceed 180."""
        top, left, side = square.top, square.left, square.side
        corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)]
        xs, ys = zip(*(self.affine @ corner for corner in corners), strict=True)
        lon, lat = (np.array(v) for v in transform(self.crs, 'EPSG:4326', xs, ys))
        return shapely.polygons(np.stack([unwrapped(lon), lat], axis=-1))


def unwrapped(lon: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Longitudes of one small outline, -180 to 180, or above 180 where it lies across the antimeridian.

    Example:
        >>> unwrapped(np.array([179.9, -179.9, 539.9])).round(3).tolist()
        [179.9, 180.1, 179.9]
        >>> unwrapped(np.array([200.0, 201.0])).tolist()
        [-160.0, -159.0]
    """
    lon = np.remainder(lon + 180, 360) - 180
    return np.where((np.ptp(lon) > 180) & (lon < 0), lon + 360, lon)


@dataclass(frozen=True)
class Tile:
    """What became of a picture."""

    pixels: Pixels
    """[C, H, W] as stored; grey is three equal bands."""
    shape: tuple[int, int]
    """Rows and columns of the picture."""
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    """physical = stored * scale + offset, by band."""
    ground: Georeference | None

    @property
    def square(self) -> Square:
        """What the tile shows of the picture."""
        return Square.middle(*self.shape)


def read_tile(path: Path, size_px: int | None) -> Tile:
    """Decode a picture and cut it.

    Args:
        path: GeoTIFF, or a picture of any kind.
        size_px: side of the tile; None leaves the picture as it is.

    Raises:
        GrafalignError: it is missing, damaged or no picture.
    """
    pixels = read_picture(path, str(path))
    height, width = pixels.shape[1:]
    scale: tuple[float, ...] = (1.0,) * len(pixels)
    offset: tuple[float, ...] = (0.0,) * len(pixels)
    ground = None
    if path.name.lower().endswith(RASTERS):
        with open_raster(path) as raster:
            if raster.count == len(pixels):
                scale, offset = tuple(raster.scales), tuple(raster.offsets)
            if raster.crs is not None and not (raster.transform.is_identity or raster.transform.is_degenerate):
                ground = _ground(raster)
    if len(pixels) == 1:
        pixels, scale, offset = coloured(pixels), scale * 3, offset * 3
    return Tile(pixels if size_px is None else cut(pixels, size_px), (height, width), scale, offset, ground)


def _ground(raster: Any) -> Georeference | None:
    """Where a raster lies; None where its coordinates are of no place on Earth, as those of a building site."""
    wkt, affine = raster.crs.to_wkt(), raster.transform
    height, width = raster.height, raster.width
    xs, ys = zip(*(affine @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))), strict=True)
    try:
        to_lonlat = Transformer.from_crs(wkt, 'EPSG:4326', always_xy=True)
    except ProjError:
        return None
    if not np.isfinite(to_lonlat.transform(xs, ys)).all():
        return None
    x, y = affine @ (width / 2, height / 2)
    metres = unit_metres(wkt, x, y)
    around = None
    if raster.crs.is_geographic:  # degrees of longitude are shorter away from the equator
        metres *= float(np.sqrt(np.cos(np.deg2rad(y))))
        around = float(x)
    return Georeference(wkt, affine, float(np.sqrt(abs(affine.determinant))) * metres, around)


def cut(pixels: Pixels, size_px: int) -> Pixels:
    """The middle square of a picture at the size of a tile, smoothed where it shrinks: [C, size_px, size_px].

    Args:
        pixels: [C, H, W] of any type; whole numbers are rounded.
        size_px: side of the tile.
    """
    square = Square.middle(*pixels.shape[1:])
    top, left, side = square.top, square.left, square.side
    middle = pixels[:, top : top + side, left : left + side]
    if side == size_px:
        return np.ascontiguousarray(middle)
    size = (size_px, size_px)
    bands = [Image.fromarray(band.astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for band in middle]
    resized = np.stack([np.asarray(band) for band in bands])
    if np.issubdtype(pixels.dtype, np.integer):
        limits = np.iinfo(pixels.dtype)
        resized = np.rint(resized).clip(limits.min, limits.max)
    return resized.astype(pixels.dtype)
