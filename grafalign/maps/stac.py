"""A map as a STAC item, with its classes by the classification extension."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox
from shapely.geometry import mapping

from grafalign import __version__
from grafalign.fields import Field
from grafalign.files import write_atomically
from grafalign.maps.classes import MapClass
from grafalign.scenes.regions import across_antimeridian

_EXTENSIONS = [
    'https://stac-extensions.github.io/classification/v2.0.0/schema.json',
    'https://stac-extensions.github.io/projection/v2.0.0/schema.json',
]
_COG = 'image/tiff; application=geotiff; profile=cloud-optimized'


def write_item(path: Path, field: Field, classes: Sequence[MapClass], files: Mapping[str, Path], nodata: int) -> None:
    """Write the STAC item of a map.

    Args:
        path: the item's file.
        field: what the map was made from.
        classes: its classes.
        files: `map`, and `confidence`, `scores`, `polygons` where there are any.
        nodata: value of pixels without a class.
    """
    write_atomically(path, (json.dumps(_item(path, field, classes, files, nodata), indent=2) + '\n').encode())


def _item(
    path: Path, field: Field, classes: Sequence[MapClass], files: Mapping[str, Path], nodata: int
) -> dict[str, Any]:
    outline = across_antimeridian(field.geobox.extent.to_crs('EPSG:4326', resolution='auto').geom)
    times = sorted(datetime.fromisoformat(s.datetime) for s in field.plan.scenes)
    stamps = [t.astimezone(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ') for t in (times[0], times[-1])]
    period = {'datetime': stamps[0]}
    if stamps[0] != stamps[1]:
        period = {'datetime': None, 'start_datetime': stamps[0], 'end_datetime': stamps[1]}  # type: ignore[dict-item]
    listed = [
        {
            'value': i,
            'name': _name(c.name, i),
            'description': c.name,
            'color_hint': '{:02X}{:02X}{:02X}'.format(*c.colour),
        }
        for i, c in enumerate(classes)
    ]
    listed.append({'value': nodata, 'name': 'nodata', 'description': 'nothing is known', 'nodata': True})
    titles = {
        'map': 'Class of each pixel',
        'confidence': 'Probability of that class, 0 to 250',
        'scores': 'Score of each class',
        'polygons': 'Classes as polygons',
    }
    assets: dict[str, dict[str, Any]] = {}
    for key, file in files.items():
        assets[key] = {
            'href': './' + os.path.relpath(file.resolve(), path.resolve().parent).replace(os.sep, '/'),
            'type': 'application/vnd.apache.parquet' if file.suffix == '.parquet' else _COG,
            'title': titles[key],
            'roles': ['data'],
        }
    assets['map']['classification:classes'] = listed
    return {
        'type': 'Feature',
        'stac_version': '1.1.0',
        'stac_extensions': _EXTENSIONS,
        'id': files['map'].stem,
        'geometry': mapping(outline),
        'bbox': _bbox(outline),
        'properties': {
            **period,
            **_projection(field.geobox),
            'gsd': field.plan.pixel_m,
            'grafalign:version': __version__,
        },
        'links': [],
        'assets': assets,
    }


def _name(name: str, value: int) -> str:
    """A class's name as the extension wants it: letters, digits, hyphens and underscores."""
    plain = ''.join(c if c.isascii() and c.isalnum() else '_' for c in name).strip('_')
    return plain or f'class_{value}'


def _bbox(outline: Any) -> list[float]:
    """West, south, east, north; west of the antimeridian is greater than east where the outline is cut by it."""
    west, south, east, north = outline.bounds
    if west <= -180 and east >= 180 and outline.geom_type == 'MultiPolygon':
        west = min(part.bounds[0] for part in outline.geoms if part.bounds[0] > 0)
        east = max(part.bounds[2] for part in outline.geoms if part.bounds[2] < 0)
    return [west, south, east, north]


def _projection(grid: GeoBox) -> dict[str, Any]:
    crs = grid.crs
    code = {'proj:code': f'EPSG:{crs.epsg}'} if crs.epsg else {'proj:code': None, 'proj:wkt2': crs.to_wkt()}
    return {**code, 'proj:shape': list(grid.shape), 'proj:transform': list(grid.affine)[:6]}
