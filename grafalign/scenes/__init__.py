"""Which scenes saw a place, and what did they see?"""

from grafalign.scenes.choice import rank_scenes
from grafalign.scenes.items import Scene, SceneSource, load_scenes
from grafalign.scenes.radiometry import BandSource, band_sources
from grafalign.scenes.read import SceneReader, SceneReadError

__all__ = [
    'BandSource',
    'Scene',
    'SceneReadError',
    'SceneReader',
    'SceneSource',
    'band_sources',
    'load_scenes',
    'rank_scenes',
]
