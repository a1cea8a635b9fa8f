"""GDAL's vectors: GeoJSON, GeoPackage, shapefiles and FlatGeobuf, told apart by their first bytes."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING

from grafalign.foreign.files import ForeignFileError, open_plain, parse_json

if TYPE_CHECKING:
    import pandas as pd

_HEAD = 4096
_CRS = re.compile(rb'"crs"|\\u00(43|63|52|72|53|73)', re.IGNORECASE)
"""The member `crs`, or letters of it written as escapes."""
_MAGIC = {
    b'SQLite format 3\0': 'GeoPackage',
    b'\0\0\x27\x0a': 'shapefile',
    b'fgb': 'FlatGeobuf',
    b'PAR1': 'GeoParquet',
}


def check_vector(path: Path | str) -> str:
    """What kind of vector file this is.

    An OGR VRT, which may name any file or address, is XML; so is KML, whose network links are no better.

    Raises:
        ForeignFileError: it is no plain file, or of none of the formats that are read.
        OSError: it cannot be read.
    """
    with open_plain(path) as file:
        head = file.read(_HEAD)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    start = head.removeprefix(b'\xef\xbb\xbf').lstrip(b' \t\r\n\x1e')
    if start.startswith(b'{'):
        _check_crs(path)
        return 'GeoJSON'
    if start.startswith(b'<'):
        raise ForeignFileError('is XML, which may name any file or address; convert it to GeoJSON (ogr2ogr)')
    raise ForeignFileError('is none of GeoJSON, GeoParquet, GeoPackage, shapefile and FlatGeobuf')


def read_vector(path: Path) -> pd.DataFrame:
    """A vector file as a table, a GeoDataFrame in degrees (EPSG:4326) where it has geometries.

    Raises:
        ForeignFileError: it is of none of the formats that are read.
        Exception: it is damaged; the readers' errors are of many types.
    """
    import geopandas as gpd

    table = gpd.read_parquet(path) if check_vector(path) == 'GeoParquet' else gpd.read_file(path)
    placed = isinstance(table, gpd.GeoDataFrame) and table.crs is not None
    return table.to_crs('EPSG:4326') if placed else table


def _check_crs(path: Path | str) -> None:
    """Refuse a GeoJSON whose reference system lies at an address, which GDAL would fetch.

    Only a system that is named is read (RFC 7946 has none at all).

    Raises:
        ForeignFileError: it does, or the file is no JSON.
    """
    with open_plain(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if _CRS.search(content) is None:
            return
        try:
            document = parse_json(content[:])
        except ValueError as error:
            raise ForeignFileError(f'is no JSON ({error})') from None
    crs = document.get('crs') if isinstance(document, dict) else None
    if crs is not None and (not isinstance(crs, dict) or crs.get('type') != 'name'):
        raise ForeignFileError('has a reference system that is not given by its name, which is not followed')
