"""The photo table: one row a photo, with a checked place; and beside it every rejected row with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.errors import InputError
from grafalign.geo import UTM_NORTH_LIMIT, UTM_SOUTH_LIMIT
from grafalign.photos.spelled_times import DayOrder, TimeSettings, read_times, settled
from grafalign.photos.values import TIME, Column, licence_names, numbers, texts, whole

SCHEMA = pa.schema(
    {
        'photo_id': pa.string(),
        'lon': pa.float64(),
        'lat': pa.float64(),
        'accuracy_m': pa.float64(),
        'heading_deg': pa.float64(),
        'field_of_view_deg': pa.float64(),
        'taken_at': TIME,
        'uri': pa.string(),
        'licence': pa.string(),
        'author': pa.string(),
        'source': pa.string(),
        'width': pa.int32(),
        'height': pa.int32(),
        'digest': pa.string(),
        'dhash': pa.uint64(),
    }
)
COLUMNS = tuple(SCHEMA.names)
REJECTED_COLUMNS = ('kind', 'id', 'reason', 'detail')
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Photos:
    """The photo table of a source: usable photos, and rejected ones with their reasons."""

    table: pd.DataFrame
    """`COLUMNS`, sorted by `photo_id`: `lon`, `lat` (degrees), `accuracy_m`, `heading_deg` (clockwise from north) and
    `field_of_view_deg` (across) are float64 with NaN for unknown, `taken_at` datetime64[us, UTC], `width`, `height`
    (pixels) Int32, `digest` the hex digest of the file's bytes, `dhash` UInt64; strings lie in Arrow, not in Python
    objects."""
    rejected: pd.DataFrame
    """`REJECTED_COLUMNS`, strings, sorted by `id`."""


def canonical(columns: dict[str, Column], rows: int, taken_at: TimeSettings | None = None) -> pa.Table:
    """An Arrow table of `SCHEMA`, `problem`, `detail` and `unsure` from columns of any type; what lacks is missing.

    `problem` is the reason why a row cannot be used, or missing. Where a position is no number, `detail` keeps what the
    table has. `unsure` keeps the text of times whose day and month cannot be told apart (`spelled_times`).
    """
    made: dict[str, Column] = {'unsure': pa.nulls(rows, pa.string())}
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        column = columns.get(name)
        if column is None:
            made[name] = pa.array(np.full(rows, np.nan)) if kind == pa.float64() else pa.nulls(rows, kind)
        elif name == 'licence':
            made[name] = licence_names(column)
        elif kind == pa.string():
            made[name] = texts(column)
        elif kind == TIME:
            made[name], made['unsure'] = read_times(whole(column), taken_at or TimeSettings())
        elif name in ('width', 'height'):
            size = numbers(column)
            fits = (size >= 1) & (size < 2**31)
            made[name] = pa.array(np.where(fits, size, 0).astype(np.int32), mask=~fits)
        elif name == 'dhash':
            made[name] = _whole_numbers(column)
        else:
            made[name] = pa.array(numbers(column))
    accuracy, heading = (made[n].to_numpy(zero_copy_only=False) for n in ('accuracy_m', 'heading_deg'))
    made['accuracy_m'] = pa.array(np.where(accuracy >= 0, accuracy, np.nan))
    made['heading_deg'] = pa.array(np.mod(heading, 360))
    view = made['field_of_view_deg'].to_numpy(zero_copy_only=False)
    made['field_of_view_deg'] = pa.array(np.where((view > 0) & (view <= 360), view, np.nan))
    made['photo_id'] = pc.coalesce(made['photo_id'], made['uri'])
    made['problem'] = texts(columns['problem']) if 'problem' in columns else pa.nulls(rows, pa.string())
    made['detail'] = texts(columns['detail']) if 'detail' in columns else _raw_places(columns, made, rows)
    made['unsure'] = made.pop('unsure')  # behind the columns of the schema
    return pa.table(made)


def _whole_numbers(column: Column) -> Column:
    cells = texts(column)
    good = pc.match_substring_regex(cells, r'^\d{1,19}$')
    return pc.cast(pc.if_else(good, cells, None), pa.uint64())


def _raw_places(columns: dict[str, Column], made: dict[str, Column], rows: int) -> Any:
    """What the table has as position, where that is no number."""
    odd = np.isnan(made['lon'].to_numpy()) | np.isnan(made['lat'].to_numpy())
    if not odd.any() or not {'lon', 'lat'} <= set(columns):
        return pa.nulls(rows, pa.string())
    raw = [pc.fill_null(texts(columns[n]), 'missing') for n in ('lon', 'lat')]
    place = pc.binary_join_element_wise('lon ', raw[0], ', lat ', raw[1], '')
    return pc.if_else(pa.array(odd), place, None)


@dataclass
class Marks:
    """Collects for every row of a table the first reason that rejects it."""

    table: pa.Table
    code: npt.NDArray[np.int16] = field(init=False)
    reasons: list[tuple[str, Callable[[Any], Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.code = np.full(len(self.table), -1, dtype=np.int16)

    @property
    def free(self) -> Bools:
        """Rows that nothing rejects so far."""
        return self.code < 0

    def mark(self, where: Bools, reason: str, detail: Callable[[Any], Any] | None = None) -> None:
        """Reject rows that are free; `detail` makes the column of details from a table of the rejected rows."""
        hit = where & self.free
        if hit.any():
            self.code[hit] = len(self.reasons)
            self.reasons.append((reason, detail or places))

    def split(self) -> tuple[pa.Table, pa.Table]:
        """The rows that are kept, and a table of `REJECTED_COLUMNS` for the others."""
        if self.free.all():
            return self.table, rejects(pa.array([], pa.string()), '', pa.array([], pa.string()))
        parts = []
        for number, (reason, detail) in enumerate(self.reasons):
            rows = self.table.filter(pa.array(self.code == number))
            parts.append(rejects(rows['photo_id'], reason, detail(rows)))
        return self.table.filter(pa.array(self.free)), pa.concat_tables(parts)


def rejects(ids: Column, reason: str, detail: Any) -> Column:
    """Rejected photos of one reason as an Arrow table."""
    count = len(ids)
    coded = [pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), [t]) for t in ('photo', reason)]
    flat = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in (ids, detail)]
    return pa.table({'kind': coded[0], 'id': pc.fill_null(flat[0], ''), 'reason': coded[1], 'detail': flat[1]})


def places(rows: Column) -> Column:
    """The details of rejected rows where there is nothing better: what a reader told, or else the position."""
    lon, lat = (pc.fill_null(pc.cast(rows[n], pa.string()), 'missing') for n in ('lon', 'lat'))
    return pc.coalesce(rows['detail'], pc.binary_join_element_wise('lon ', lon, ', lat ', lat, ''))


def mark_unusable(marks: Marks) -> None:
    """Reject rows without an address or a place that can be true."""
    table = marks.table
    if table['problem'].null_count < len(table):
        for problem in pc.unique(table['problem']).to_pylist():
            if problem is not None:
                where = pc.fill_null(pc.equal(table['problem'], problem), False)
                marks.mark(where.to_numpy(), problem)
    lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
    marks.mark(np.isnan(lon) | np.isnan(lat), 'no position')
    marks.mark((np.abs(lat) > 90) | (np.abs(lon) > 180), 'impossible coordinates')
    marks.mark((np.abs(lon) < 1e-6) & (np.abs(lat) < 1e-6), 'position 0, 0')
    marks.mark((lat > UTM_NORTH_LIMIT) | (lat < UTM_SOUTH_LIMIT), 'outside the UTM zones (80 S to 84 N)')
    marks.mark(pc.is_null(table['uri']).to_numpy(), 'no uri')


_FIRST_PHOTO = pd.Timestamp('1826-01-01', tz='UTC')
"""Niépce's view from the window at Le Gras is of 1826 or 1827."""


def mark_impossible_times(marks: Marks) -> None:
    """Reject rows taken before there were photos or after tomorrow: programs write year 1 and 9999 for none."""
    taken = marks.table['taken_at']
    latest = pd.Timestamp.now(tz='UTC').floor('D') + pd.Timedelta(days=2)
    bounds = [pa.scalar(b.to_pydatetime(), TIME) for b in (_FIRST_PHOTO, latest)]
    odd = pc.or_(pc.less(taken, bounds[0]), pc.greater_equal(taken, bounds[1]))
    marks.mark(
        pc.fill_null(odd, False).to_numpy(),
        'impossible time',
        lambda rows: pc.binary_join_element_wise('taken at ', pc.cast(rows['taken_at'], pa.string()), ''),
    )


def with_order(table: pa.Table, order: DayOrder, taken_at: TimeSettings) -> pa.Table:
    """A table in which the times that were unsure are settled.

    Raises:
        GrafalignError: no row of the column tells whether the day or the month comes first.
    """
    unsure = table['unsure'].combine_chunks()
    if unsure.null_count == len(unsure):
        return table
    example = next(c for c in unsure.to_pylist() if c is not None)
    found = pc.coalesce(table['taken_at'].combine_chunks(), settled(unsure, taken_at, order.decide(example)))
    return table.set_column(table.schema.get_field_index('taken_at'), 'taken_at', found)


def mark_same_ids(marks: Marks) -> None:
    """Keep one row of each `photo_id`: the least by uri, then by the other columns, whatever the order of the rows."""
    free = np.flatnonzero(marks.free)
    ids = marks.table['photo_id'].take(pa.array(free)).combine_chunks().dictionary_encode().indices.to_numpy()
    again = np.bincount(ids, minlength=1)[ids] > 1
    if not again.any():
        return
    rows = free[again]
    keys = ['photo_id', 'uri', *(n for n in COLUMNS if n not in ('photo_id', 'uri'))]
    order = _frame(marks.table.take(pa.array(rows)).select(keys)).sort_values(keys, kind='stable')
    where = np.zeros(len(marks.table), dtype=bool)
    where[rows[order.index[order.duplicated('photo_id')].to_numpy()]] = True
    marks.mark(where, 'duplicate photo_id')


@dataclass
class SwapWatch:
    """Counts latitudes beyond 90 degrees over all batches of a table."""

    source: str
    usable: int = 0
    beyond: int = 0
    fits: int = 0

    def see(self, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> None:
        """Count a batch."""
        usable = ~(np.isnan(lon) | np.isnan(lat))
        beyond = usable & (np.abs(lat) > 90)
        self.usable += int(usable.sum())
        self.beyond += int(beyond.sum())
        self.fits += int((beyond & (np.abs(lon) <= 90) & (np.abs(lat) <= 180)).sum())

    def check(self) -> None:
        """Raise if latitude and longitude are exchanged in the table as its values show.

        Raises:
            GrafalignError: most latitudes lie beyond 90 degrees and would be longitudes.
        """
        if self.usable and self.beyond > 0.5 * self.usable and self.fits == self.beyond:
            raise InputError(
                f'{self.source}: latitude and longitude look swapped ({self.beyond} of {self.usable} latitudes lie '
                'beyond 90 degrees and would be longitudes); exchange the `lon` and `lat` columns in the recipe.'
            )


def _remedy(reason: str) -> str:
    """What helps where most photos were rejected for one reason."""
    if reason in ('file is missing', 'uri leaves the root folder', 'no uri', 'unusable uri'):
        return 'set photos.root to the folder that the uris are relative to, or photos.columns.uri to their column'
    if reason in ('no position', 'impossible coordinates', 'position 0, 0', 'malformed row'):
        return 'check that the images carry a position, or name the position columns in the recipe'
    if reason == 'impossible time':
        return 'check the column of the times, or set photos.taken_at.format'
    if reason in ('not an image', 'damaged image', 'truncated image'):
        return 'check the files'
    return 'check photos.filters and photos.schemes of the recipe'


def finished(kept: pa.Table, rejected: pa.Table, source: str) -> Photos:
    """Sorted tables of pandas.

    Raises:
        GrafalignError: there is no row at all, or none is usable.
    """
    if not len(kept) and not len(rejected):
        raise InputError(f'{source} holds no photos; give a folder of images or a table with one photo a row.')
    if not len(kept):
        counts = pc.value_counts(rejected['reason'].cast(pa.string())).to_pylist()
        worst = min(counts, key=lambda c: (-c['counts'], c['values']))['values']
        raise InputError(
            f'{source}: none of the {len(rejected)} photos can be used (most often: {worst}); {_remedy(worst)}.'
        )
    kept = kept.select(list(COLUMNS))
    kept = kept.take(pc.sort_indices(kept, sort_keys=[('photo_id', 'ascending')]))
    out = pa.table({n: rejected[n].cast(pa.string()) for n in REJECTED_COLUMNS})
    keys = [(n, 'ascending') for n in ('id', 'reason', 'detail')]
    return Photos(_frame(kept), _frame(out.take(pc.sort_indices(out, sort_keys=keys))))


def _frame(table: pa.Table) -> pd.DataFrame:
    kinds = {pa.string(): pd.StringDtype(), pa.int32(): pd.Int32Dtype(), pa.uint64(): pd.UInt64Dtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get, split_blocks=True, self_destruct=False)
    return frame
