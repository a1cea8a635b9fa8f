"""STAC scenes: search, choose among them, and cut tiles out of their files."""

from grafalign.scenes.blocks import Cut, SceneCutter, SceneTiles, Uncut
from grafalign.scenes.choice import Choice, choose_scenes
from grafalign.scenes.items import FoundScenes, Scene, load_scenes
from grafalign.scenes.opening import SceneReadError
from grafalign.scenes.radiometry import BandSource, band_sources, cloud_mask
from grafalign.scenes.regions import regions_of
from grafalign.scenes.scene_table import SceneTable
from grafalign.scenes.source import SceneSource
from grafalign.web.ranges import RangeReader

__all__ = [
    'BandSource',
    'Choice',
    'Cut',
    'FoundScenes',
    'RangeReader',
    'Scene',
    'SceneCutter',
    'SceneReadError',
    'SceneSource',
    'SceneTable',
    'SceneTiles',
    'Uncut',
    'band_sources',
    'choose_scenes',
    'cloud_mask',
    'load_scenes',
    'regions_of',
]
