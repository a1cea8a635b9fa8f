"""Objects of one's own: GeoParquet, GeoJSON or GeoPackage with OpenStreetMap's tags as columns, or a column `kind`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grafalign.captions.landmarks.kinds import Kind, hidden, kind_of, table, told_date
from grafalign.captions.landmarks.objects import MapObject
from grafalign.errors import InputError
from grafalign.foreign.vectors import read_vector

Bounds = tuple[float, float, float, float]
_IDS = ('@id', 'osm_id', 'id', 'fid')


def read_own(
    path: Path, near: Callable[[Bounds], bool], unread: Counter[str], licence: str = 'not stated'
) -> Iterator[MapObject]:
    """Landmarks of a file that lie near some tile.

    Args:
        path: the file; without a reference system it is in degrees.
        near: whether a box west, south, east, north may touch a tile.
        unread: counts rows that lie nowhere, by reason.
        licence: of what it says.

    Raises:
        GrafalignError: the file cannot be read, or tells no kinds.
    """
    try:
        frame: Any = read_vector(path)
    except Exception as error:  # the readers of vector files have errors of many types
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read ({reason}); give GeoParquet, GeoJSON or GeoPackage.') from None
    if not hasattr(frame, 'crs'):
        raise InputError(f'{path} has no geometries; give GeoParquet, GeoJSON or GeoPackage.')
    frame = frame.set_crs('OGC:CRS84') if frame.crs is None else frame.to_crs('OGC:CRS84')
    keys = [c for c in frame.columns if c in table()]
    if 'kind' not in frame.columns and not keys:
        raise InputError(f'{path} tells no kinds: it has neither a column `kind` nor one of {", ".join(table())}.')
    id_column = next((c for c in _IDS if c in frame.columns), None)
    texts = [c for c in frame.columns if c != frame.geometry.name]
    for row, (shape, values) in enumerate(zip(frame.geometry, frame[texts].to_dict('records'), strict=True)):
        if shape is None or shape.is_empty or not _on_earth(shape.bounds):
            unread['no geometry' if shape is None or shape.is_empty else 'not on earth'] += 1
            continue
        if not near(shape.bounds):
            continue
        tags = {str(k): str(v) for k, v in values.items() if v is not None and v == v and str(v).strip()}
        kind = Kind(tags['kind'], f'kind={tags["kind"]}') if 'kind' in tags else kind_of(tags)
        if kind is None:
            continue
        name = f'own/{path.name}/{tags.get("@type", "")}{tags[id_column] if id_column and id_column in tags else row}'
        yield MapObject(
            name, kind, tags.get('name'), shape, hidden(tags), told_date(tags.get('start_date')), licence, ''
        )


def _on_earth(bounds: Bounds) -> bool:
    west, south, east, north = bounds
    return west >= -180 and east <= 180 and south >= -90 and north <= 90  # False for what is no number
