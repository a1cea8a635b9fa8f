"""Objects of Overture Maps' Parquet files: base, buildings, infrastructure and places, of either schema.

`class` of the base themes follows OpenStreetMap's values. Places tell what they are in `basic_category` and `taxonomy`
(2025 on) or in `categories`; they are points without a size, so that only kinds of a known size are landmarks.
GeoParquet's metadata may be missing, and WKB may be of either byte order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from grafalign import console
from grafalign.captions.landmarks.kinds import Kind, hidden, kind_of, table, told_date
from grafalign.captions.landmarks.objects import MapObject
from grafalign.errors import InputError

Bounds = tuple[float, float, float, float]
_WANTED = (
    'id',
    'geometry',
    'bbox',
    'names',
    'class',
    'subtype',
    'categories',
    'basic_category',
    'taxonomy',
    'source_tags',
    'sources',
    'is_underground',
    'level',
    'operating_status',
)
_ALIASES = {
    'airport': 'aeroway=aerodrome',
    'stadium_arena': 'leisure=stadium',
    'golf_course': 'leisure=golf_course',
    'gas_station': 'amenity=fuel',
    'train_station': 'railway=station',
    'church_cathedral': 'amenity=place_of_worship',
    'campground': 'tourism=camp_site',
    'lighthouse': 'man_made=lighthouse',
    'castle': 'historic=castle',
    'fountain': 'amenity=fountain',
    'bus_station': 'amenity=bus_station',
    'beach': 'natural=beach',
    'public_pool': 'leisure=swimming_pool',
    'swimming_pool': 'leisure=swimming_pool',
    'playground': 'leisure=playground',
    'water_park': 'leisure=water_park',
    'zoo': 'tourism=zoo',
    'storage_tank': 'man_made=storage_tank',
    'wind_turbine': 'power=generator',
}
"""Overture's words that are not OpenStreetMap's values."""


def read_overture(path: Path, near: Callable[[Bounds], bool], box: Bounds, unread: Counter[str]) -> Iterator[MapObject]:
    """Landmarks of a file that lie near some tile.

    Args:
        path: a Parquet file, or a folder of them.
        near: whether a box west, south, east, north may touch a tile.
        box: around all tiles; row groups outside are not read.
        unread: counts rows that are none of Overture's, by reason.

    Raises:
        GrafalignError: the file cannot be read, or is none of Overture's.
    """
    files = sorted(path.rglob('*.parquet')) if path.is_dir() else [path]
    if not files:
        raise InputError(f'{path} holds no .parquet file; give files of Overture Maps.')
    for file in files:
        try:
            yield from _file(file, near, box, unread)
        except (pa.ArrowException, OSError, UnicodeDecodeError, shapely.errors.GEOSException) as error:
            reason = ' '.join(str(error).split())[:200]
            raise InputError(f'{file} cannot be read ({reason}); get it whole.') from None


def _file(path: Path, near: Callable[[Bounds], bool], box: Bounds, unread: Counter[str]) -> Iterator[MapObject]:
    opened = pq.ParquetFile(path, pre_buffer=False)  # which would read the file as a whole
    names = opened.schema_arrow.names
    if not {'id', 'geometry'} <= set(names):
        raise InputError(
            f'{path} is no file of Overture Maps (no id and geometry); its columns are {", ".join(names[:20])}.'
        )
    columns = [n for n in _WANTED if n in names]
    with console.progress(f'reading {path.name}', opened.metadata.num_rows) as bar:
        for batch in opened.iter_batches(1 << 14, columns=columns):
            rows = pa.Table.from_batches([batch])
            bar.advance(len(rows))
            if 'bbox' in columns:
                rows = rows.filter(_touching(rows['bbox'], box))
            geometry = shapely.from_wkb(rows['geometry'].to_numpy(zero_copy_only=False), on_invalid='ignore')
            for row, shape in zip(rows.drop_columns(['geometry']).to_pylist(), geometry, strict=True):
                if shape is None:
                    unread['no geometry'] += 1
                    continue
                try:
                    found = _object(row, shape) if near(shape.bounds) else None
                except (TypeError, AttributeError, ValueError):
                    unread["columns of other types than Overture's"] += 1
                    continue
                if found is not None:
                    yield found


def _touching(bbox: Any, box: Bounds) -> Any:
    west, south, east, north = (pc.struct_field(bbox, n) for n in ('xmin', 'ymin', 'xmax', 'ymax'))
    across = pc.and_(pc.less_equal(west, box[2]), pc.greater_equal(east, box[0]))
    return pc.fill_null(pc.and_(across, pc.and_(pc.less_equal(south, box[3]), pc.greater_equal(north, box[1]))), False)


def _object(row: dict[str, Any], shape: Any) -> MapObject | None:
    tags = {str(k): str(v) for k, v in row.get('source_tags') or [] if v is not None}
    kind = kind_of(tags) or _kind(row)
    if kind is None:
        return None
    reason = hidden(tags)
    if row.get('is_underground') or (row.get('level') or 0) < 0:
        reason = reason or 'underground or indoors'
    if row.get('operating_status') in ('permanently_closed', 'closed'):
        reason = reason or 'gone, or not yet built'
    names = row.get('names') or {}
    sources = row.get('sources') or []
    osm = any(s.get('dataset') == 'OpenStreetMap' for s in sources)
    return MapObject(
        f'overture/{row["id"]}',
        kind,
        names.get('primary') or None,
        shape,
        reason,
        _since(sources, tags),
        'ODbL-1.0' if osm or row.get('class') else 'CDLA-Permissive-2.0',
        'OpenStreetMap contributors, Overture Maps Foundation' if osm else 'Overture Maps Foundation',
    )


def _since(_sources: list[dict[str, Any]], tags: dict[str, str]) -> date | None:
    """Overture tells when a source was updated, which is no first day."""
    return told_date(tags.get('start_date'))


def _kind(row: dict[str, Any]) -> Kind | None:
    taxonomy, old = row.get('taxonomy') or {}, row.get('categories') or {}
    words = [
        row.get('class'),
        row.get('subtype'),
        row.get('basic_category'),
        taxonomy.get('primary'),
        old.get('primary'),
    ]
    for word in words:
        if not isinstance(word, str):
            continue
        if word in _ALIASES:
            key, _, value = _ALIASES[word].partition('=')
            return table()[key][value]
        found = next((kinds[word] for kinds in table().values() if word in kinds and word != 'yes'), None)
        if found is not None:
            return found
    # a building without a class is a building; a place without a kind of ours is a shop or an office in one
    return table()['building']['yes'] if 'is_underground' in row else None
