"""Read one tile of one scene: a pure copy where the grids match, a bilinear warp elsewhere.

No value is made up: pixels that no source pixel covers come back as nodata and are counted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import TracebackType

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from grafalign.scenes.radiometry import BandSource

GDAL_SETTINGS = {
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',  # one request to open a file, not a listing of its folder
    'GDAL_HTTP_MAX_RETRY': 5,
    'GDAL_HTTP_RETRY_DELAY': 0.5,
    'GDAL_CACHEMAX': 256,
}
_ALIGNED_PX = 0.01
"""Grids that differ by less than this share of a pixel count as the same."""


class SceneReadError(Exception):
    """An asset could not be opened or read; the text says which and why."""


class SceneReader:
    """Reads tiles, keeping a few files open; one reader serves one thread.

    Args:
        open_files: how many files stay open at most.
    """

    def __init__(self, open_files: int = 24) -> None:
        self._open: OrderedDict[str, DatasetReader] = OrderedDict()
        self._limit = open_files
        self._thread = threading.get_ident()

    def __enter__(self) -> SceneReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, bands: list[BandSource], tile: GeoBox) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
        """Read the bands of one tile.

        Args:
            bands: C bands; all of one data type.
            tile: the wanted grid.

        Returns:
            Pixels [C, H, W] as stored (scale and offset not applied, missing pixels 0), and the mask [H, W] of pixels
            that are missing in any band.

        Raises:
            SceneReadError: a file is missing, damaged, or of another type than its fellows.
        """
        planes, missing = [], np.zeros(tile.shape, dtype=bool)
        with rasterio.Env(**GDAL_SETTINGS):
            for band in bands:
                try:
                    plane, holes = _read_band(self._file(band.href), band, tile)
                except (RasterioError, OSError, ValueError, IndexError) as error:
                    self._forget(band.href)
                    raise SceneReadError(f'{band.href}: {error.__cause__ or error}') from None
                planes.append(plane)
                missing |= holes
        kinds = {p.dtype for p in planes}
        if len(kinds) > 1:
            raise SceneReadError(f'{bands[0].href}: bands are stored as {", ".join(map(str, sorted(kinds, key=str)))}')
        pixels = np.stack(planes)
        pixels[:, missing] = 0
        return pixels, missing

    def _file(self, href: str) -> DatasetReader:
        if href in self._open:
            self._open.move_to_end(href)
            return self._open[href]
        dataset = rasterio.open(href)
        self._open[href] = dataset
        if len(self._open) > self._limit:
            self._open.popitem(last=False)[1].close()
        return dataset

    def _forget(self, href: str) -> None:
        if href in self._open:
            self._open.pop(href).close()


def source_window(dataset: DatasetReader, tile: GeoBox) -> Window | None:
    """The window of a raster that is the tile, pixel for pixel; None where reading needs a warp."""
    corners = np.array([(0, 0), (tile.shape[1], 0), (0, tile.shape[0]), tile.shape[::-1]], dtype=float)
    x, y = tile.affine @ corners.T
    if str(dataset.crs) != str(tile.crs):
        # two datums of one projection (NAD 83 and WGS 84 in UTM) may be one grid for all that a pixel can tell
        x, y = Transformer.from_crs(str(tile.crs), dataset.crs.to_wkt(), always_xy=True).transform(x, y)
    to_pixel: Affine = ~dataset.transform
    col, row = to_pixel @ (np.asarray(x), np.asarray(y))
    left, top = np.round(col[0]), np.round(row[0])
    if np.abs(col - left - corners[:, 0]).max() > _ALIGNED_PX or np.abs(row - top - corners[:, 1]).max() > _ALIGNED_PX:
        return None
    return Window(int(left), int(top), tile.shape[1], tile.shape[0])


def _read_band(
    dataset: DatasetReader, band: BandSource, tile: GeoBox
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """One band [H, W] and the mask of its missing pixels."""
    if band.index > dataset.count:
        raise IndexError(f'has {dataset.count} bands, no band {band.index}')
    nodata = band.nodata if band.nodata is not None else dataset.nodata
    window = source_window(dataset, tile)
    if window is not None:
        plane = dataset.read(band.index, window=window, boundless=True, fill_value=0 if nodata is None else nodata)
        inside = np.zeros(tile.shape, dtype=bool)
        rows = slice(max(0, -window.row_off), max(0, min(tile.shape[0], dataset.height - window.row_off)))
        cols = slice(max(0, -window.col_off), max(0, min(tile.shape[1], dataset.width - window.col_off)))
        inside[rows, cols] = True
        return plane, ~inside if nodata is None else ~inside | (plane == nodata)
    holes = {'add_alpha': True} if nodata is None else {'src_nodata': nodata, 'nodata': nodata}
    with WarpedVRT(
        dataset,
        crs=str(tile.crs),
        transform=tile.affine,
        width=tile.shape[1],
        height=tile.shape[0],
        resampling=Resampling.bilinear,
        **holes,
    ) as warped:
        plane = warped.read(band.index)
        seen = warped.dataset_mask() if nodata is None else warped.read_masks(band.index)
    return plane, seen == 0
