"""Maps of a person's own words: classes, confidence and polygons from a field and prompts."""

from grafalign.maps.classes import ClassesFile, MapClasses, embed_classes, load_classes
from grafalign.maps.make import MapSummary, make_map
from grafalign.maps.write import MapFiles, write_map

__all__ = [
    'ClassesFile',
    'MapClasses',
    'MapFiles',
    'MapSummary',
    'embed_classes',
    'load_classes',
    'make_map',
    'write_map',
]
