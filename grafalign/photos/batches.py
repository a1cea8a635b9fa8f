"""Stream a table of any kind in batches of Arrow columns, never as Python objects as a whole.

Text stays text (`007` is an id); `values.py` makes numbers and times of it. The primary geometry of GeoJSON and
GeoParquet and every GeoJSON point inside JSON come as two columns NAME.lon and NAME.lat in degrees (the primary one:
`geometry`), nested fields as OUTER.INNER. A row that is no row of the table is reported with its number and the rest
goes on.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pyproj
import shapely

from grafalign.errors import GrafalignError, InputError
from grafalign.foreign import parse_json
from grafalign.foreign.vectors import check_vector
from grafalign.photos.opening import kind_of, local_copy, name_of, open_seekable, open_stream
from grafalign.photos.quotes import WholeRecords
from grafalign.photos.values import Column

BLOCK_BYTES = 16 << 20
"""Text is parsed in blocks of this size; no row may be longer."""
HEADER_BYTES = 1 << 20
MAX_COLUMNS = 5_000
MAX_DOCUMENT_BYTES = 512 << 20
"""A JSON document that is not one object a line is held in memory."""
BATCH_ROWS = 1 << 16
MISSING = ['', 'NA', 'N/A', 'n/a', 'NaN', 'nan', 'null', 'NULL', 'None', '\\N', '#N/A']
"""Cells of a text table that mean: nothing."""
_BOM = '\ufeff'
_CRS_NAME = re.compile(r'[A-Za-z]+:[A-Za-z0-9]+|(PROJCRS|GEOGCRS|PROJCS|GEOGCS|BOUNDCRS)\[.*', re.DOTALL)
"""A reference system by its code, or as WKT; a PROJ string could name files."""

Choose = Callable[[list[str]], list[str]]
"""From the columns that a table has to those that are wanted; raises GrafalignError where one lacks."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a table."""

    table: pa.Table
    """Arrow table of the chosen columns."""
    malformed: list[tuple[str, str]] = field(default_factory=list)
    """Rows that are none: an id made of file and row number, and what is wrong."""


@dataclass(frozen=True)
class Form:
    """How a text table is written, where its suffix does not tell."""

    delimiter: str = ','
    quoted: bool = True
    names: Callable[[list[str]], list[str] | None] | None = None
    """From the fields of the first line to the names of the columns, or None if that line is the names."""


def read_batches(path: str, choose: Choose, form: Form | None = None) -> Iterator[Batch]:
    """Stream a table.

    Args:
        path: file or URL; its suffix tells the kind and the compression.
        choose: picks the columns.
        form: how a text table is written; makes a file of any name a text table.

    Raises:
        GrafalignError: the file is missing, of no known kind, damaged, or no table.
    """
    kind, compression = kind_of(path)
    choose = _of_one_column_each(path, choose)
    if form is not None and kind in (None, 'csv', 'tsv'):
        yield from _csv(path, choose, form, compression)
        return
    readers: dict[str, Callable[[str, Choose, str | None], Iterator[Batch]]] = {
        'csv': lambda p, c, z: _csv(p, c, Form(), z),
        'tsv': lambda p, c, z: _csv(p, c, Form('\t'), z),
        'jsonl': _jsonl,
        'parquet': _parquet,
        'geojson': _geojson,
        'json': _json,
    }
    if kind is None:
        name = name_of(path)
        suffix = f'.{name.rsplit(".", 1)[1]}' if '.' in name else 'a file without suffix'
        raise InputError(
            f'{path}: {suffix} is not a known kind of table; use .csv, .tsv, .jsonl, .parquet, .geoparquet or '
            '.geojson, optionally with .gz, .bz2 or .zst.'
        )
    try:
        yield from readers[kind](path, choose, compression)
    except GrafalignError:
        raise
    except (pa.ArrowException, OSError, ValueError, RuntimeError, EOFError, MemoryError) as error:
        raise _unreadable(path, error) from None


def _of_one_column_each(path: str, choose: Choose) -> Choose:
    """The same choice, refused where a chosen name is that of two columns."""

    def once(names: list[str]) -> list[str]:
        chosen = choose(names)
        count = Counter(names)
        for name in chosen:
            if count[name] > 1:
                raise InputError(f'{path} has {count[name]} columns {name!r}; give every column a name of its own.')
        return chosen

    return once


def _unreadable(path: str, error: BaseException) -> GrafalignError:
    reason = ' '.join(str(error).split())[:300]
    return InputError(f'{path} cannot be read as a table ({reason}); check that it is whole.')


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


def _csv(path: str, choose: Choose, form: Form, compression: str | None) -> Iterator[Batch]:
    first = _first_line(path, form, compression)
    given = form.names(first) if form.names else None
    names = given or first
    wanted = choose(names)
    unique = [n if names.index(n) == i else f'{n}#{i}' for i, n in enumerate(names)]
    malformed: list[tuple[str, str]] = []

    def unclosed(number: int, text: str) -> None:
        malformed.append(
            (f'{name_of(path)} row {number}', f'{path}, row {number}: a quotation mark is not closed: {text[:80]!r}')
        )

    def skip(row: Any) -> str:
        number = '' if row.number is None else row.number
        what = f'{row.actual_columns} fields instead of {row.expected_columns}: {str(row.text)[:80]!r}'
        malformed.append((f'{name_of(path)} row {number}', f'{path}, row {number}: {what}'))
        return 'skip'

    options = {
        'read_options': pacsv.ReadOptions(
            use_threads=False,  # else the number of a malformed row is not known
            block_size=BLOCK_BYTES,
            column_names=unique,
            skip_rows=0 if given else 1,
        ),
        'parse_options': pacsv.ParseOptions(
            delimiter=form.delimiter,
            quote_char='"' if form.quoted else False,
            newlines_in_values=form.quoted,
            invalid_row_handler=skip,
        ),
        'convert_options': pacsv.ConvertOptions(
            include_columns=wanted,
            column_types={n: pa.binary() for n in wanted},  # not every table is UTF-8
            null_values=MISSING,
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            check_utf8=False,
        ),
    }
    try:
        with open_stream(path, compression) as stream:
            try:
                records = (
                    WholeRecords(stream, len(names), form.delimiter, BLOCK_BYTES, unclosed, header=not given)
                    if form.quoted
                    else stream
                )
                reader = pacsv.open_csv(pa.PythonFile(records, mode='r') if form.quoted else stream, **options)
            except pa.ArrowInvalid as error:
                if 'Empty CSV' in str(error):
                    return
                raise
            for batch in reader:
                table = pa.Table.from_batches([batch])
                yield Batch(pa.table({n: decoded(table[n]) for n in wanted}), malformed.copy())
                malformed.clear()
    except (pa.ArrowException, OSError, EOFError) as error:
        if 'straddling' in str(error):
            raise InputError(f'{path} has a row of more than {BLOCK_BYTES >> 20} MB; mend that row.') from None
        raise _unreadable(path, error) from None
    if malformed:
        yield Batch(pa.table({n: pa.array([], pa.string()) for n in wanted}), malformed)


def _first_line(path: str, form: Form, compression: str | None) -> list[str]:
    try:
        with open_stream(path, compression) as stream:
            head = stream.read(HEADER_BYTES)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(path, error) from None
    if not head.strip():
        raise InputError(f'{path} holds no photos; give a folder of images or a table with one photo a row.')
    line, newline, _ = head.partition(b'\n')
    if b'\0' in head[:4096]:
        raise InputError(f'{path} is not a text table; check that it is whole and that its suffix is right.')
    if not newline and len(head) >= HEADER_BYTES:
        raise InputError(
            f'{path}: the first line is longer than {HEADER_BYTES >> 20} MB, so it is no table; write the names of '
            'the columns in the first line and one photo a line.'
        )
    text = line.decode('utf-8', 'replace').removeprefix(_BOM).rstrip('\r')
    if '\r' in text:
        raise InputError(f'{path}: its lines end in carriage returns alone; write it with line feeds.')
    names = text.split(form.delimiter)
    if form.quoted:
        names = next(csv.reader(io.StringIO(text), delimiter=form.delimiter), [])
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f'{path} has {len(names)} columns, more than {MAX_COLUMNS}; write one photo a line, not one a column.'
        )
    return [n.strip() for n in names]


def decoded(column: Column) -> Column:
    """Bytes as text: UTF-8, or Latin-1 for values that are not."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        pass

    def text(value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return value.decode('latin-1') if value is not None else None

    return pa.chunked_array([pa.array([text(v) for v in column.to_pylist()], pa.string())])


# --- JSON -------------------------------------------------------------------------------------------------------------


def _jsonl(path: str, choose: Choose, compression: str | None) -> Iterator[Batch]:
    wanted: list[str] | None = None
    number = 0
    with open_stream(path, compression) as stream:
        for lines in line_blocks(stream, path):
            rows, malformed = [], []
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError('no JSON object')
                    rows.append(flat(value))
                except (ValueError, RecursionError) as error:
                    what = f'{path}, row {number}: {error}'
                    malformed.append((f'{name_of(path)} row {number}', what[:300]))
            if wanted is None and rows:
                wanted = choose(list(dict.fromkeys(key for row in rows[:10_000] for key in row)))
            yield Batch(_columns(rows, wanted or []), malformed)
    if wanted is None and not number:
        raise InputError(f'{path} holds no photos; give a folder of images or a table with one photo a row.')


def line_blocks(stream: Any, path: str) -> Iterator[list[bytes]]:
    """Lines in lists of a few megabytes."""
    rest, count = b'', 0
    while block := stream.read(BLOCK_BYTES // 4):
        lines = (rest + block).split(b'\n')
        rest = lines.pop()
        count += len(lines)
        if len(rest) > BLOCK_BYTES:
            raise InputError(
                f'{path}, row {count + 1} is longer than {BLOCK_BYTES >> 20} MB, so it is no table; write one JSON '
                'object a line.'
            )
        if lines:
            yield lines
    if rest:
        yield [rest]


def _json(path: str, choose: Choose, compression: str | None) -> Iterator[Batch]:
    """One JSON document: GeoJSON, or an object or list of rows, as the APIs of Flickr and Mapillary answer."""
    with open_stream(path, compression) as stream:
        head = stream.read(4096)
        if b'"FeatureCollection"' not in head:
            content = head + stream.read(MAX_DOCUMENT_BYTES)
    if b'"FeatureCollection"' in head:
        yield from _geojson(path, choose, compression)
        return
    if len(content) >= MAX_DOCUMENT_BYTES:
        raise InputError(f'{path} is larger than {MAX_DOCUMENT_BYTES >> 20} MB; write one JSON object a line (.jsonl).')
    try:
        rows = _rows_of(json.loads(content))
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if rows is None:
        raise InputError(f'{path} is JSON but holds no list of photos; write one JSON object a line (.jsonl).')
    good = [flat(row) for row in rows if isinstance(row, dict)]
    bad = [
        (f'{name_of(path)} row {i + 1}', f'{path}, row {i + 1}: no JSON object')
        for i, row in enumerate(rows)
        if not isinstance(row, dict)
    ]
    wanted = choose(list(dict.fromkeys(key for row in good for key in row))) if good else []
    yield Batch(_columns(good, wanted), bad)


def _rows_of(value: Any) -> list[Any] | None:
    """The list of rows in a document: itself, or below `photos`, `photo` or `data`."""
    for _ in range(4):
        if isinstance(value, list):
            return value
        if not isinstance(value, dict):
            return None
        value = next((value[k] for k in ('photos', 'photo', 'data', 'features') if k in value), None)
    return None


def flat(row: dict[str, Any], prefix: str = '') -> dict[str, str]:
    """An object's values as text; nested ones as OUTER.INNER, points as NAME.lon and NAME.lat."""
    if row.get('type') == 'Feature' and isinstance(row.get('properties'), dict):
        row = {'id': row.get('id'), **row['properties'], 'geometry': row.get('geometry')}
    found: dict[str, str] = {}
    for key, value in row.items():
        name = f'{prefix}{key}'
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, bool):
            found[name] = 'true' if value else 'false'
        elif isinstance(value, int | float):
            found[name] = repr(value)
        elif isinstance(value, dict):
            point = value.get('coordinates')
            if isinstance(point, list):
                if value.get('type') == 'Point' and len(point) >= 2:
                    found[f'{name}.lon'], found[f'{name}.lat'] = str(point[0]), str(point[1])
            elif len(prefix) < 200:
                found |= flat(value, f'{name}.')
    return found


def _columns(rows: list[dict[str, str]], wanted: list[str]) -> Any:
    def column(name: str) -> Any:
        values = [row.get(name) for row in rows]
        try:
            return pa.array(values, pa.string())
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
            return pa.array([v if v is None else v.encode('utf-8', 'replace').decode() for v in values], pa.string())

    return pa.table({name: column(name) for name in wanted})


# --- Parquet and GeoJSON ----------------------------------------------------------------------------------------------


def _parquet(path: str, choose: Choose, compression: str | None) -> Iterator[Batch]:
    with open_seekable(path, compression) as opened:
        file = pq.ParquetFile(opened)
        schema = file.schema_arrow
        primary, crs = _primary_geometry(schema)
        names = [n for f in schema for n in _leaves(f) if f.name != primary]
        if len(names) > MAX_COLUMNS:
            raise InputError(f'{path} has {len(names)} columns, more than {MAX_COLUMNS}; write one photo a row.')
        if primary is not None:
            names += ['geometry.lon', 'geometry.lat']
        wanted = choose(names)
        read = [n for n in wanted if not (primary is not None and n.startswith('geometry.'))]
        place = len(read) < len(wanted)
        for rows in file.iter_batches(BATCH_ROWS, columns=[*read, primary] if place else read):
            table = pa.Table.from_batches([rows])
            outlines = table[primary] if place else None
            while any(pa.types.is_struct(f.type) for f in table.schema):
                table = table.flatten()
            chosen = {n: table[n] for n in read}
            if outlines is not None:
                chosen['geometry.lon'], chosen['geometry.lat'] = _positions(outlines, crs)
            yield Batch(pa.table(chosen))


def _leaves(column: Column, prefix: str = '') -> list[str]:
    """Names of a column, or of what is inside a struct."""
    if not pa.types.is_struct(column.type):
        return [f'{prefix}{column.name}']
    return [n for inner in column.type for n in _leaves(inner, f'{prefix}{column.name}.')]


def _primary_geometry(schema: Any) -> tuple[str | None, Any]:
    """Name and CRS of the geometry that GeoParquet's metadata calls the primary one (version 1.1: no `crs`, CRS84)."""
    geo_metadata = (schema.metadata or {}).get(b'geo')
    if geo_metadata is None:
        return None, None
    try:
        geo = parse_json(geo_metadata)
        name = geo.get('primary_column')
        if name not in schema.names:
            return None, None
        return name, geo['columns'][name].get('crs', 'OGC:CRS84')
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'its `geo` metadata is damaged ({error!r})') from None


def _geojson(path: str, choose: Choose, compression: str | None) -> Iterator[Batch]:
    import pyogrio  # type: ignore[import-untyped]

    # times as they are written: GDAL would drop the zones of all where they differ
    options = {'batch_size': BATCH_ROWS, 'use_pyarrow': True, 'DATE_AS_STRING': 'YES'}
    with local_copy(path, compression) as local:
        kind = check_vector(local)  # GDAL would open anything, such as a VRT that names other files
        if kind != 'GeoJSON':
            raise ValueError(f'it is {kind}, not GeoJSON')
        with pyogrio.raw.open_arrow(local, **options) as (meta, reader):
            yield from _features(meta, reader, choose)


def _features(meta: Any, reader: Any, choose: Choose) -> Iterator[Batch]:
    geometry = meta['geometry_name'] or 'wkb_geometry'
    names = [n for n in reader.schema.names if n != geometry]
    wanted = choose([*names, 'geometry.lon', 'geometry.lat'])
    for rows in reader:
        table = pa.Table.from_batches([rows])
        chosen = {n: table[n] for n in wanted if n in names}
        if 'geometry.lon' in wanted:
            chosen['geometry.lon'], chosen['geometry.lat'] = _positions(table[geometry], meta['crs'])
        yield Batch(pa.table(chosen))


def _positions(outlines: Any, crs: Any) -> tuple[Any, Any]:
    """Longitude and latitude of points as WKB or as GeoArrow x and y; anything else is no place to stand: NaN."""
    if pa.types.is_struct(outlines.type):
        merged = outlines.combine_chunks()
        x, y = (merged.field(n).to_numpy(zero_copy_only=False).astype(float) for n in ('x', 'y'))
    else:
        shapes = shapely.from_wkb(outlines.to_numpy(), on_invalid='ignore')
        points = shapely.get_type_id(shapes) == shapely.GeometryType.POINT
        x, y = shapely.get_x(shapes), shapely.get_y(shapes)
        x, y = np.where(points, x, np.nan), np.where(points, y, np.nan)
    if crs is not None:
        if isinstance(crs, str) and not _CRS_NAME.fullmatch(crs):
            raise ValueError(f'its reference system {crs[:60]!r} is not given by name')  # +init= names a file
        known = pyproj.CRS.from_user_input(crs)
        if not known.equals(pyproj.CRS('OGC:CRS84'), ignore_axis_order=True) and known.to_epsg() != 4326:
            x, y = pyproj.Transformer.from_crs(known, 'EPSG:4326', always_xy=True).transform(x, y)
    return pa.array(np.where(np.isfinite(x), x, np.nan)), pa.array(np.where(np.isfinite(y), y, np.nan))
