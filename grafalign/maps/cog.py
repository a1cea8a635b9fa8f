"""Rasters of a map as cloud-optimised GeoTIFFs: written row by row beside the file, then copied and moved in.

Class rasters get a palette, nodata, no mask band (with one QGIS opens them as multiband), and overviews by MODE: GDAL's
own choice for a raster without palette is cubic, which makes classes up.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from grafalign.errors import MachineError
from grafalign.files import replacing, write_atomically
from grafalign.maps.classes import MapClass

_CACHE_MB = 256
"""GDAL's cache of blocks; by default it is a share of the machine's memory."""


class RowWriter:
    """Writes a raster from the top down.

    Args:
        dataset: open for writing.
    """

    def __init__(self, dataset: DatasetWriter) -> None:
        self._dataset, self._row = dataset, 0

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Write the next rows, [rows, W] or [bands, rows, W]."""
        bands = rows if rows.ndim == 3 else rows[None]
        self._dataset.write(bands, window=Window(0, self._row, bands.shape[2], bands.shape[1]))
        self._row += bands.shape[1]


class Copies:
    """Copies that make COGs of finished rows, side by side: each is one thread of GDAL's and takes a while."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_name_prefix='cogs')
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all of them; raises what the first failed one raised."""
        self._pool.shutdown()
        if kind is None:
            for future in self._futures:
                future.result()

    def add(self, rows: Path, path: Path, overviews: str) -> None:
        """Begin a copy.

        Args:
            rows: the finished file, which goes.
            path: the COG.
            overviews: how they are made.
        """
        self._futures.append(self._pool.submit(_copy, rows, path, overviews))


def _copy(rows: Path, path: Path, overviews: str) -> None:
    # amounts differ from pixel to pixel: GDAL's own level, 6, takes twice as long for 14 % of the bytes
    level = 1 if overviews == 'AVERAGE' else 6
    try:
        with _naming(path), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB), replacing(path) as part:
            rasterio.shutil.copy(
                rows, part, driver='COG', compress='DEFLATE', level=level, blocksize=512,
                overview_resampling=overviews, bigtiff='IF_SAFER',
            )  # fmt: skip
    finally:
        rows.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_cog(
    copies: Copies,
    path: Path,
    grid: GeoBox,
    dtype: str,
    nodata: float,
    overviews: str,
    *,
    palette: Mapping[int, tuple[int, int, int]] | None = None,
    names: Sequence[str] = (),
    scale: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[RowWriter]:
    """Write a COG; it is there, whole, when the copies end without an error.

    Args:
        copies: makes it a COG once its rows are written.
        path: the file.
        grid: its pixels.
        dtype: of its numbers.
        nodata: their value where nothing is known.
        overviews: how overviews are made: MODE for classes, AVERAGE for amounts.
        palette: colours of values.
        names: descriptions of the bands, one each; one band without by default.
        scale: physical = number * scale.
        tags: of the file.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = path.with_name(f'.{path.name}.rows.tif')
    with writing_rows(rows, grid, dtype, nodata, palette=palette, names=names, scale=scale, tags=tags) as writer:
        yield writer
    copies.add(rows, path, overviews)


@contextlib.contextmanager
def writing_rows(
    path: Path,
    grid: GeoBox,
    dtype: str,
    nodata: float,
    *,
    palette: Mapping[int, tuple[int, int, int]] | None = None,
    names: Sequence[str] = (),
    scale: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[RowWriter]:
    """Write a plain GeoTIFF from the top down; the arguments are those of `writing_cog`.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """
    height, width = grid.shape
    profile = {
        'driver': 'GTiff', 'height': height, 'width': width, 'count': max(1, len(names)), 'dtype': dtype,
        'crs': str(grid.crs), 'transform': grid.affine, 'nodata': nodata, 'bigtiff': 'IF_SAFER', 'interleave': 'band',
    }  # fmt: skip
    try:
        with (
            _naming(path),
            rasterio.Env(GDAL_CACHEMAX=_CACHE_MB),
            rasterio.open(path, 'w', **profile) as dataset,
        ):
            if palette is not None:
                dataset.write_colormap(1, {**dict.fromkeys(range(256), (0, 0, 0, 0)), **_opaque(palette)})
            for number, name in enumerate(names, start=1):
                dataset.set_band_description(number, name)
            if scale is not None:
                dataset.scales = [scale] * dataset.count
            dataset.update_tags(**(tags or {}))
            yield RowWriter(dataset)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _opaque(palette: Mapping[int, tuple[int, int, int]]) -> dict[int, tuple[int, int, int, int]]:
    return {value: (*colour, 255) for value, colour in palette.items()}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """GDAL says what it could not do, and not that the disk is full."""
    try:
        yield
    except RasterioError as error:
        free = os.statvfs(path.parent)
        reason = ' '.join(str(error).split())[:160]
        if free.f_bavail * free.f_frsize < (1 << 24):
            reason = f'{os.strerror(errno.ENOSPC)}: {reason}'
        raise MachineError(f'{path} cannot be written ({reason}); make room, or give another folder.') from None


def write_class_names(path: Path, classes: Sequence[MapClass]) -> None:
    """Write `MAP.aux.xml`: category names and a raster attribute table, where GDAL and QGIS look for them.

    rasterio cannot write attribute tables.
    """
    names = ''.join(f'<Category>{escape(c.name)}</Category>' for c in classes)
    fields = (('Value', 0, 5), ('Class', 2, 2), ('Red', 0, 6), ('Green', 0, 7), ('Blue', 0, 8))
    definitions = ''.join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(fields)
    )
    rows = ''.join(
        f'<Row index="{i}">' + ''.join(f'<F>{escape(str(v))}</F>' for v in (i, c.name, *c.colour)) + '</Row>'
        for i, c in enumerate(classes)
    )
    text = (
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames>'
        f'<GDALRasterAttributeTable tableType="thematic">{definitions}{rows}</GDALRasterAttributeTable>'
        '</PAMRasterBand></PAMDataset>\n'
    )
    write_atomically(path.with_name(f'{path.name}.aux.xml'), text.encode())


def as_bytes(chance: npt.NDArray[np.float32], missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Probabilities as 0 to 250, 255 where nothing is known."""
    return np.where(missing, np.uint8(255), np.rint(chance * 250).astype(np.uint8))
