"""STAC items as stac-geoparquet, there and back, without loss of what the items say.

stac-geoparquet (https://github.com/stac-utils/stac-geoparquet) gives every property a typed column. What that changes:

- A key that some items lack is null for them; reading drops nulls again, so a null and a missing key are the same here.
- Whole numbers beside fractions become fractions (1 -> 1.0), and times of the common metadata get microseconds.
- Keys that Arrow cannot type (a number here, a text there; an empty object; integers beyond 64 bits; more asset keys
  than columns are good for) would make writing fail: here they are stored as JSON text, and the file's metadata says
  which (`grafalign:json`). A property named as a member of the item (`type`, `id`) would be dropped: it is renamed.
- Members of an item that STAC does not know are left out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

_MEMBERS = ('type', 'stac_version', 'stac_extensions', 'id', 'geometry', 'bbox', 'collection', 'links', 'assets')
_TIMES = ('datetime', 'start_datetime', 'end_datetime', 'created', 'updated', 'expires', 'published', 'unpublished')
_JSON_KEY = b'grafalign:json'
_RENAMED = 'properties:'
_ASSETS = 'grafalign:assets'
_MOST_ASSET_KEYS = 400
"""Beyond this, items that name their assets freely would make a column for every field of every name."""
_BATCH = 512
UNWRITABLE = 'the item cannot be kept in a table'

Path_ = tuple[str, ...]
"""Keys from the item down; `[]` stands for the entries of a list."""


def items_to_parquet(items: Iterable[dict[str, Any]]) -> bytes:
    """A stac-geoparquet file of items that have an id, an outline and readable times.

    Args:
        items: STAC items; not changed. The table of no items is a file with an `id` column and no rows.
    """
    from stac_geoparquet.arrow import parse_stac_items_to_arrow

    plain = [_plain(item) for item in items]
    buffer = io.BytesIO()
    if not plain:
        pq.write_table(pa.table({'id': pa.array([], pa.string())}), buffer)
        return buffer.getvalue()
    if len({key for item in plain for key in item.get('assets', {})}) > _MOST_ASSET_KEYS:
        for item in plain:
            item['properties'][_ASSETS] = json.dumps(item['assets'])
            item['assets'] = {'all': {'href': '', 'description': f'see {_ASSETS}'}}
    as_json = sorted(_untyped(plain))
    for item in plain:
        for path in as_json:
            _apply(item, path, lambda value: json.dumps(value, sort_keys=True))
    table = parse_stac_items_to_arrow(plain).read_all()
    outline = {'encoding': 'WKB', 'geometry_types': []}
    geo = {'version': '1.1.0', 'primary_column': 'geometry', 'columns': {'geometry': outline}}
    metadata = {b'geo': json.dumps(geo).encode(), _JSON_KEY: json.dumps(as_json).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression='zstd')
    return buffer.getvalue()


def keep_items(items: list[dict[str, Any]]) -> tuple[bytes, list[tuple[dict[str, Any], str]]]:
    """As `items_to_parquet`, but for the items that cannot be written: these come back with the reason.

    One item among thousands may hold what no table can (half of a surrogate pair, an outline that is a word, a hundred
    levels of nesting); it is found by halving.
    """
    try:
        return items_to_parquet(items), []
    except Exception as error:  # stac-geoparquet, Arrow, Shapely and Python itself raise types of their own
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
    bad = _unwritable(items, reason)
    lost = {id(item) for item, _ in bad}
    return items_to_parquet(item for item in items if id(item) not in lost), bad


def _unwritable(items: list[dict[str, Any]], reason: str) -> list[tuple[dict[str, Any], str]]:
    if len(items) == 1:
        return [(items[0], reason)]
    found = []
    for half in (items[: len(items) // 2], items[len(items) // 2 :]):
        try:
            items_to_parquet(half)
        except Exception as error:
            found += _unwritable(half, ' '.join(str(error).split())[:200] or type(error).__name__)
    if not found:  # each half can be written and both together cannot: the larger table goes on without the smaller
        return [(item, reason) for item in items[len(items) // 2 :]]
    return found


def read_items(path: Path, boxes: shapely.STRtree | None = None) -> Iterator[dict[str, Any]]:
    """The items of a stac-geoparquet file, ours or another's.

    Args:
        path: the file.
        boxes: only items whose outline's box touches one of these geometries (degrees); one that lies over the
            antimeridian always counts. What the item states as its bbox is not asked.
    """
    from stac_geoparquet.arrow import stac_table_to_items

    file = pq.ParquetFile(path)
    as_json = [tuple(p) for p in json.loads((file.schema_arrow.metadata or {}).get(_JSON_KEY, b'[]'))]
    for batch in file.iter_batches(_BATCH):
        if boxes is not None and 'geometry' in batch.schema.names:
            batch = batch.filter(pa.array(_touching(batch['geometry'], boxes)))
        if not batch.num_rows:
            continue
        for item in stac_table_to_items(pa.Table.from_batches([batch])):
            yield _restored(item, as_json)


def _touching(outlines: Any, boxes: shapely.STRtree) -> Any:
    """Whose outline's box touches one of the geometries, or cannot be told."""
    shapes = shapely.from_wkb(outlines.cast(pa.binary()).to_numpy(zero_copy_only=False), on_invalid='ignore')
    west, south, east, north = shapely.bounds(shapes).T
    sure = ~(east - west <= 180) | (west < -180) | (east > 180)  # over the antimeridian, or unknown
    found = boxes.query(
        shapely.box(
            np.where(sure, 0, west), np.where(sure, 0, south), np.where(sure, 0, east), np.where(sure, 0, north)
        )
    )[0]
    sure[np.unique(found)] = True
    return sure


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """An item without nulls and with what stac-geoparquet takes for granted: bbox, links, 2-D boxes, readable times."""
    kept: dict[str, Any] = {k: _without_nulls(item[k]) for k in _MEMBERS if item.get(k) is not None}
    box = kept.get('bbox')
    if isinstance(box, list) and len(box) == 6:
        box = [*box[:2], *box[3:5]]
    if not isinstance(box, list) or len(box) != 4:
        box = list(shapely.geometry.shape(item['geometry']).bounds)
    kept |= {key: str(kept[key]) for key in ('id', 'collection') if key in kept}
    kept |= {'type': 'Feature', 'bbox': [float(v) for v in box], 'links': kept.get('links', [])}
    kept['stac_extensions'] = kept.get('stac_extensions', [])
    properties = {}
    for key, value in _without_nulls(item.get('properties') or {}).items():
        clash = key in _MEMBERS or key.startswith(_RENAMED) or (key in _TIMES and not _is_time(value))
        properties[_RENAMED + key if clash else key] = value
    return {**kept, 'properties': properties}


def _is_time(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        when = pa.scalar(value).cast(pa.timestamp('us', tz='UTC'))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return bool(when.as_py() is not None) and pd.Timestamp(value).tzinfo is not None


def _restored(item: dict[str, Any], as_json: list[Path_]) -> dict[str, Any]:
    """An item as it was before `_plain`, but for nulls."""
    item = _without_nulls(item)
    for path in reversed(as_json):
        _apply(item, path, lambda value: json.loads(value) if isinstance(value, str) else value)
    properties = {k.removeprefix(_RENAMED): v for k, v in item.get('properties', {}).items()}
    properties.setdefault('datetime', None)
    if _ASSETS in properties:
        item['assets'] = json.loads(properties.pop(_ASSETS))
    return {**item, 'type': 'Feature', 'properties': properties}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list | tuple) else value


def _untyped(items: list[dict[str, Any]]) -> set[Path_]:
    """The shortest paths whose values have no common Arrow type."""
    kinds: dict[Path_, set[str]] = {}
    children: dict[Path_, set[str]] = {}

    def look(value: Any, path: Path_) -> None:
        kinds.setdefault(path, set()).add(_arrow_kind(value))
        if isinstance(value, dict):
            children.setdefault(path, set()).update(value)
            for key, inner in value.items():
                look(inner, (*path, key))
        elif isinstance(value, list):
            for inner in value:
                look(inner, (*path, '[]'))

    for item in items:
        for key in item.keys() - {'geometry', 'bbox'}:
            look(item[key], (key,))
    bad = {p for p, found in kinds.items() if len(found - {'null'}) > 1 or 'too large' in found}
    bad |= {p for p, found in kinds.items() if 'object' in found and not children.get(p)}
    bad -= {p for p in bad if 'proj:geometry' in p}  # stac-geoparquet makes these WKB
    return {p for p in bad if not any(p[:n] in bad for n in range(1, len(p)))}


def _arrow_kind(value: Any) -> str:
    if value is None:
        return 'null'
    if isinstance(value, bool):
        return 'truth value'
    if isinstance(value, int):
        return 'number' if abs(value) < 2**53 else 'too large'
    if isinstance(value, float):
        return 'number'
    if isinstance(value, str):
        return 'text'
    return 'object' if isinstance(value, dict) else 'list'


def _apply(value: Any, path: Path_, change: Any) -> None:
    """Replace what lies at a path, in place, wherever it is there."""
    key, rest = path[0], path[1:]
    if key == '[]':
        places: list[Any] = list(range(len(value))) if isinstance(value, list) else []
    else:
        places = [key] if isinstance(value, dict) and key in value else []
    for place in places:
        if rest:
            _apply(value[place], rest, change)
        elif value[place] is not None:
            value[place] = change(value[place])
