"""Land and borders of the world for the map: Natural Earth, public domain (`pages/land.json`)."""

from __future__ import annotations

import functools
import json
from importlib.resources import files

import numpy as np
import shapely


@functools.cache
def borders_and_land() -> str:
    """GeoJSON with two features: `kind` is land, or borders."""
    content = json.loads((files('grafalign.pages') / 'land.json').read_text(encoding='utf-8'))
    unit = content['unit']

    def points(steps: list[int]) -> np.ndarray:
        """Corners of a line, of which all but the first are steps from the one before."""
        return np.cumsum(np.reshape(steps, (-1, 2)), axis=0) * unit

    land = shapely.Polygon()
    for ring in sorted((shapely.Polygon(points(r)) for r in content['land']), key=lambda ring: -ring.area):
        land = land.symmetric_difference(ring.buffer(0))  # a ring inside another is water
    borders = shapely.MultiLineString([points(line) for line in content['borders']])
    features = [
        {'type': 'Feature', 'properties': {'kind': kind}, 'geometry': json.loads(shapely.to_geojson(shape))}
        for kind, shape in (('land', land), ('borders', borders))
    ]
    return json.dumps({'type': 'FeatureCollection', 'features': features}, separators=(',', ':'))
