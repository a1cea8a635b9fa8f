"""Maps of a person's own words: classes, confidence and polygons from a field and prompts."""

from grafalign.maps.classes import ClassesFile, MapClasses, embed_classes, load_classes
from grafalign.maps.make import MapSummary, make_map
from grafalign.maps.points import read_points
from grafalign.maps.tuned import TunedWords, load_tuned, load_words, tune_words
from grafalign.maps.write import MapFiles, write_map

__all__ = [
    'ClassesFile',
    'MapClasses',
    'MapFiles',
    'MapSummary',
    'TunedWords',
    'embed_classes',
    'load_classes',
    'load_tuned',
    'load_words',
    'make_map',
    'read_points',
    'tune_words',
    'write_map',
]
