"""GDAL's rasters: which driver opens a file follows from its first bytes, and nothing in it leads to other files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader, MemoryFile

from grafalign.foreign.files import ForeignFileError, open_plain

_MAGIC = {
    b'II*\0': 'GTiff',
    b'MM\0*': 'GTiff',
    b'II+\0': 'GTiff',
    b'MM\0+': 'GTiff',
    b'\0\0\0\x0c': 'JP2OpenJPEG',
    b'\xff\x4f\xff\x51': 'JP2OpenJPEG',
}
"""First bytes of what is read, and GDAL's driver for it: TIFF, BigTIFF, JPEG 2000."""
ALONE = {
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',
    'CPL_VSIL_CURL_ALLOWED_EXTENSIONS': '.nothing-is-fetched-by-gdal',
    'GDAL_HTTP_MAX_RETRY': '0',
    'GDAL_HTTP_CONNECTTIMEOUT': '1',
}
"""GDAL looks at this file alone: what lies beside it (.ovr, .aux.xml, .msk) it would open with any driver. And it
fetches nothing by itself: what is elsewhere comes through our own reader."""


def raster_driver(head: bytes) -> str:
    """GDAL's driver for a file that begins with these bytes.

    Raises:
        ForeignFileError: it is none of the formats that are read; the text says what it looks like.
    """
    driver = _MAGIC.get(head[:4])
    if driver is not None:
        return driver
    start = head[:512].lstrip().lower()
    if start.startswith((b'<!doctype html', b'<html')):
        raise ForeignFileError('is a web page, not a raster; does its host ask for a login?')
    if start.startswith(b'<'):
        raise ForeignFileError(
            'is XML (a VRT?), which may name any file or address; make a GeoTIFF of it (gdal_translate -of COG)'
        )
    raise ForeignFileError('is neither TIFF nor JPEG 2000')


def check_references(dataset: DatasetReader) -> None:
    """Refuse a file that makes GDAL open another one; to be called before its overviews or masks are asked for.

    GDAL looks for the overviews of a dataset in the file that `OVERVIEW_FILE` names, whatever and wherever it is.

    Raises:
        ForeignFileError: it names one.
    """
    if any(key.upper() == 'OVERVIEW_FILE' for key in dataset.tags(ns='OVERVIEWS')):  # GDAL takes any case
        raise ForeignFileError('names another file for its overviews, which is not followed')


def open_raster(source: Path | bytes, **options: Any) -> DatasetReader:
    """Open a raster on this machine, or in memory.

    Args:
        source: the file or its content.
        options: passed on to `rasterio.open`.

    Raises:
        ForeignFileError: it is no plain file, or of another format.
        rasterio.errors.RasterioError: it is damaged.
        OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        head = source[:512]
    else:
        with open_plain(source) as file:
            head = file.read(512)
    driver = raster_driver(head)
    with warnings.catch_warnings(), rasterio.Env(**ALONE):
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        if isinstance(source, bytes):
            dataset = MemoryFile(source).open(driver=driver, **options)
        else:
            dataset = rasterio.open(source, driver=driver, **options)
    try:
        check_references(dataset)
    except ForeignFileError:
        dataset.close()
        raise
    return dataset
