"""Ready-made readers for the layouts in which photo collections are published: one file each, named after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from grafalign.photos.layouts import flickr, geograph, inaturalist, lucas, mapillary, yfcc100m
from grafalign.photos.raw import Raw, Where

Layout = Literal['flickr', 'geograph', 'inaturalist', 'lucas', 'mapillary', 'yfcc100m']
LAYOUTS: dict[str, Callable[[list[str], Where], Iterator[Raw]]] = {
    'flickr': flickr.read,
    'geograph': geograph.read,
    'inaturalist': inaturalist.read,
    'lucas': lucas.read,
    'mapillary': mapillary.read,
    'yfcc100m': yfcc100m.read,
}
"""Each takes the files and where the photos lie, and streams rows; it raises GrafalignError where files or columns
lack."""
