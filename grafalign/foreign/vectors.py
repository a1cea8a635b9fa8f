"""GDAL's vectors: GeoJSON, GeoPackage, shapefiles and FlatGeobuf, told apart by their first bytes."""

from __future__ import annotations

from pathlib import Path

from grafalign.foreign.files import ForeignFileError, open_plain

_HEAD = 4096
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
        return 'GeoJSON'
    if start.startswith(b'<'):
        raise ForeignFileError('is XML, which may name any file or address; convert it to GeoJSON (ogr2ogr)')
    raise ForeignFileError('is none of GeoJSON, GeoParquet, GeoPackage, shapefile and FlatGeobuf')
