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
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from grafalign.scenes.item_file import Items

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


def items_to_parquet(items: Sequence[dict[str, Any]]) -> bytes:
    """A stac-geoparquet file of items that have an id, an outline and readable times.

    Items are gone through three times, a batch at a time, so that a sequence that reads them from disk never has many
    of them in memory.

    Args:
        items: STAC items; not changed. The table of no items is a file with an `id` column and no rows.
    """
    from stac_geoparquet.arrow import parse_stac_items_to_arrow

    buffer = io.BytesIO()
    if not len(items):
        pq.write_table(pa.table({'id': pa.array([], pa.string())}), buffer)
        return buffer.getvalue()
    free_names = _more_than(set(item.get('assets') or {}) for item in items)
    types = _Types()
    for item in items:
        types.look(_plain(item, free_names))
    as_json = sorted(types.untyped())
    with _Spool() as spool:
        for start in range(0, len(items), _BATCH):
            batch = [_plain(item, free_names) for item in items[start : start + _BATCH]]
            for item in batch:
                for path in as_json:
                    _apply(item, path, lambda value: json.dumps(value, sort_keys=True))
            spool.add(parse_stac_items_to_arrow(batch).read_all())
        outline = {'encoding': 'WKB', 'geometry_types': []}
        geo = {'version': '1.1.0', 'primary_column': 'geometry', 'columns': {'geometry': outline}}
        metadata = {b'geo': json.dumps(geo).encode(), _JSON_KEY: json.dumps(as_json).encode()}
        schema = spool.schema.with_metadata(metadata)
        with pq.ParquetWriter(buffer, schema, compression='zstd') as writer:
            for table in spool.tables():
                writer.write_table(table.replace_schema_metadata(metadata))
    return buffer.getvalue()


def _more_than(keys: Iterable[set[str]]) -> bool:
    """Whether there are more different asset keys than columns are good for."""
    met: set[str] = set()
    for some in keys:
        met |= some
        if len(met) > _MOST_ASSET_KEYS:
            return True
    return False


class _Spool:
    """Tables in a temporary file until the columns of all of them are known."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, as long as this object
        self._places: list[int] = []
        self.schema = pa.schema([])

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, table: pa.Table) -> None:
        """Keep a table; the schema takes in its columns."""
        table = table.replace_schema_metadata(None)
        self.schema = pa.unify_schemas([self.schema, table.schema], promote_options='permissive')
        self._places.append(self._file.tell())
        with pa.ipc.new_stream(self._file, table.schema, options=pa.ipc.IpcWriteOptions(compression='lz4')) as sink:
            sink.write_table(table)

    def tables(self) -> Iterator[pa.Table]:
        """The tables with the columns of all, in their order."""
        for place in self._places:
            self._file.seek(place)
            with pa.ipc.open_stream(self._file) as source:
                yield pa.concat_tables([self.schema.empty_table(), source.read_all()], promote_options='permissive')


def keep_items(items: Sequence[dict[str, Any]]) -> tuple[bytes, list[tuple[dict[str, Any], str]]]:
    """As `items_to_parquet`, but for the items that cannot be written: these come back with the reason."""
    try:
        return items_to_parquet(items), []
    except Exception as error:  # stac-geoparquet, Arrow, Shapely and Python itself raise types of their own
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
    bad = _halved(items, range(len(items)), reason)
    lost = {number for number, _ in bad}
    kept = [number for number in range(len(items)) if number not in lost]
    return items_to_parquet(Items(items.__getitem__, kept)), [(items[number], reason) for number, reason in bad]


def unwritable(items: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Numbers of the items that cannot be written, with the reasons."""
    try:
        items_to_parquet(items)
        return []
    except Exception as error:
        return _halved(items, range(len(items)), ' '.join(str(error).split())[:200] or type(error).__name__)


def _halved(items: Sequence[dict[str, Any]], numbers: Sequence[int], reason: str) -> list[tuple[int, str]]:
    """Which of some items cannot be written.

    One item among thousands may hold what no table can (half of a surrogate pair, an outline that is a word, a hundred
    levels of nesting); it is looked for in halves.
    """
    if len(numbers) == 1:
        return [(numbers[0], reason)]
    bad: list[tuple[int, str]] = []
    for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
        try:
            items_to_parquet(Items(items.__getitem__, half))
        except Exception as error:
            bad += _halved(items, half, ' '.join(str(error).split())[:200] or type(error).__name__)
    if not bad:  # each half can be written and both together cannot: the larger table goes on without the smaller
        return [(number, reason) for number in numbers[len(numbers) // 2 :]]
    return bad


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


def _plain(item: dict[str, Any], free_names: bool = False) -> dict[str, Any]:
    """An item without nulls and with what stac-geoparquet takes for granted: bbox, links, 2-D boxes, readable times.

    Where items name their assets freely, all assets become one text.
    """
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
    if free_names:
        properties[_ASSETS] = json.dumps(kept.get('assets'))
        kept['assets'] = {'all': {'href': '', 'description': f'see {_ASSETS}'}}
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


class _Types:
    """What lies at each path of many items, to know the shortest paths whose values have no common Arrow type."""

    def __init__(self) -> None:
        self._kinds: dict[Path_, set[str]] = {}
        self._children: dict[Path_, set[str]] = {}

    def look(self, item: dict[str, Any]) -> None:
        """Take in an item."""
        for key in item.keys() - {'geometry', 'bbox'}:
            self._look(item[key], (key,))

    def _look(self, value: Any, path: Path_) -> None:
        self._kinds.setdefault(path, set()).add(_arrow_kind(value))
        if isinstance(value, dict):
            self._children.setdefault(path, set()).update(value)
            for key, inner in value.items():
                self._look(inner, (*path, key))
        elif isinstance(value, list):
            for inner in value:
                self._look(inner, (*path, '[]'))

    def untyped(self) -> set[Path_]:
        """The shortest paths whose values have no common type."""
        kinds, children = self._kinds, self._children
        bad = {p for p, met in kinds.items() if len(met - {'null'}) > 1 or 'too large' in met}
        bad |= {p for p, met in kinds.items() if 'object' in met and not children.get(p)}
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
