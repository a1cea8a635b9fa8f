"""The gate for files that data names or contains: a table's photos, an item's assets, a data set's pictures, a store.

Whoever made them may be a stranger, and GDAL, Pillow and the file system do far more than read pictures when asked
nicely: a VRT names any file of this machine, a WMS description any address, PostScript runs a program, a device never
ends. So what a file is follows from its first bytes, only the formats listed here are opened, by drivers named one by
one, and only plain files of a bounded size are. `SECURITY.md` says what is promised.

    files.py     plain files, paths that stay below a folder, JSON of bounded size and depth
    images.py    Pillow: photos and pictures
    rasters.py   GDAL: scenes and GeoTIFFs (imports rasterio)
    vectors.py   GDAL: tables and regions (imports pyogrio where it is needed)
"""

from grafalign.foreign.files import ForeignFileError, below, open_plain, parse_json, parse_object, whole_number

__all__ = ['ForeignFileError', 'below', 'open_plain', 'parse_json', 'parse_object', 'whole_number']
