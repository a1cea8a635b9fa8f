"""Objects of an OpenStreetMap extract (.osm.pbf, .osm.bz2), read once from front to back by osmium."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import shapely

from grafalign import console
from grafalign.captions.landmarks.kinds import hidden, kind_of, table, told_date
from grafalign.captions.landmarks.objects import MapObject
from grafalign.errors import InputError, MachineError

Bounds = tuple[float, float, float, float]
_TYPES = {'n': 'node', 'w': 'way', 'r': 'relation'}


def read_osm(path: Path, near: Callable[[Bounds], bool], unread: Counter[str]) -> Iterator[MapObject]:
    """Landmarks of an extract that lie near some tile.

    Memory is that of osmium's table of node positions (16 bytes a node of the extract) and of its open areas.

    Args:
        path: the extract.
        near: whether a box west, south, east, north may touch a tile; what does not is not built.
        unread: counts objects that have no shape, by reason.

    Raises:
        GrafalignError: osmium is not installed, or the file is damaged.
    """
    try:
        osmium: Any = importlib.import_module('osmium')
    except ImportError:
        raise MachineError('OpenStreetMap files are read by osmium; install grafalign[captions].') from None
    factory = osmium.geom.WKBFactory()
    keys = osmium.filter.KeyFilter(*table())
    count = 0
    try:
        reader = osmium.FileProcessor(str(path)).with_areas(keys).with_filter(keys)
        with console.progress(f'reading {path.name}') as bar:
            for item in reader:
                count += 1
                if count % 4096 == 0:
                    bar.advance(4096)
                try:
                    found = _object(item, factory, near)
                except (RuntimeError, ValueError):  # a broken ring, a node that the extract lacks
                    unread['shape cannot be built'] += 1
                    continue
                if found is not None:
                    yield found
            bar.advance(count % 4096)
    except (RuntimeError, OSError, ValueError) as error:  # osmium raises RuntimeError on damage
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read behind object {count:,} ({reason}); get it whole.') from None


def _object(item: Any, factory: Any, near: Callable[[Bounds], bool]) -> MapObject | None:
    kind_text = item.type_str()
    if kind_text == 'r':
        return None  # multipolygons come as areas; routes and sites have no shape of their own
    tags = {tag.k: tag.v for tag in item.tags}
    kind = kind_of(tags)
    if kind is None:
        return None
    if kind_text == 'n':
        if kind.point_m is None or not near((item.lon, item.lat, item.lon, item.lat)):
            return None
        geometry = shapely.Point(item.lon, item.lat)
        name = f'osm/node/{item.id}'
    elif kind_text == 'w':
        if item.is_closed() and kind.line_m is None:
            return None  # it comes again as an area
        if item.is_closed() and tags.get('area') == 'yes':
            return None
        places = [(n.lon, n.lat) for n in item.nodes if n.location.valid()]
        if kind.line_m is None or len(places) < 2 or not near(_bounds(places)):
            return None
        geometry = shapely.LineString(places)
        name = f'osm/way/{item.id}'
    else:
        if (
            kind.line_m is not None
            and tags.get('area') != 'yes'
            and item.from_way()
            and kind.key.split('=')[0] in _LINES
        ):
            return None  # a closed road is a line
        if not near(_bounds([(n.lon, n.lat) for ring in item.outer_rings() for n in ring])):
            return None
        geometry = shapely.from_wkb(bytes.fromhex(factory.create_multipolygon(item)))
        name = f'osm/{"way" if item.from_way() else "relation"}/{item.orig_id()}'
    since = told_date(tags.get('start_date'))
    if since is None and item.version == 1:  # a later version says when it was last touched, not since when it is there
        since = item.timestamp.date()
    return MapObject(name, kind, tags.get('name') or None, geometry, hidden(tags), since)


_LINES = ('highway', 'railway', 'waterway', 'power', 'aeroway')
"""Keys whose closed ways are lines unless they say `area=yes`."""


def _bounds(places: list[tuple[float, float]]) -> Bounds:
    lon, lat = [p[0] for p in places], [p[1] for p in places]
    return min(lon), min(lat), max(lon), max(lat)
