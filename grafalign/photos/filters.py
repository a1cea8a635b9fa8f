"""Which photos of a source are wanted. Everything is off unless the recipe turns it on.

Filters are applied in this order, and a rejected row keeps the first reason that hit it:

1. what cannot be used at all (`table.py`): no address, no position, an impossible one, 0, 0
2. one row by itself: region, null_island_km, integer_degrees, max_accuracy_m, dates, licences, min_px
3. rows against each other: the same photo_id, duplicates, bursts, max_per_author

Where some rows of many are kept, they are those of the lowest rank in a keyed hash of their `photo_id` (`ranks.py`), as
in the plan of the tiles. Nothing depends on the order of the rows or on how they were read.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from pydantic import Field, field_validator, model_validator

from grafalign.config import Settings
from grafalign.errors import InputError
from grafalign.foreign.vectors import read_vector
from grafalign.geo import EARTH_RADIUS_M
from grafalign.photos.duplicates import duplicate_of
from grafalign.photos.ranks import ranks
from grafalign.photos.table import Bools, Marks
from grafalign.photos.values import licence_name

BURST_CELL_DEG = 1e-4
"""About 11 m of latitude; longitude is scaled to the same length."""


class PhotoFilters(Settings):
    """The `photos.filters:` part of a recipe."""

    region: tuple[float, float, float, float] | Path | None = None
    """West, south, east, north in degrees (west > east crosses the antimeridian), or a polygon file: GeoJSON,
    GeoPackage or GeoParquet."""
    dates: tuple[date | None, date | None] | None = None
    """First and last day in UTC, both included; null leaves an end open. Photos of unknown time are rejected."""
    max_accuracy_m: float | None = Field(default=None, gt=0)
    """Largest error of the position."""
    require_accuracy: bool = False
    """Reject photos whose error is not known too."""
    licences: list[str] | None = None
    """Licences that are wanted, such as CC-BY-SA-4.0; a name without version stands for all versions."""
    max_per_author: int | None = Field(default=None, ge=1)
    """Photos kept of each known author."""
    bursts: bool = False
    """Of the photos of one author at one place (a cell of about 11 m) in one minute keep one. Photos that name no
    author count as one author a source; a time of exactly midnight is a day, not a minute."""
    min_px: int | None = Field(default=None, ge=1)
    """Smallest length of the shorter side, where the size is known."""
    null_island_km: float | None = Field(default=None, gt=0)
    """Reject positions nearer to 0, 0."""
    integer_degrees: bool = False
    """Reject positions of which both coordinates are whole degrees."""
    duplicates: Literal['none', 'bytes', 'perceptual'] = 'none'
    """Keep one of the photos with the same bytes, or of those that look the same too (64-bit dHash)."""
    max_distance: int = Field(default=4, ge=0, le=8)
    """Bits in which the dHashes of two photos that look the same may differ."""
    seed: int = 0
    """Seed of the ranks."""

    @field_validator('region', mode='before')
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) != 4:
            raise ValueError('a region is [west, south, east, north] or the path of a polygon file')
        return value

    @model_validator(mode='after')
    def _sensible(self) -> Self:
        if isinstance(self.region, tuple):
            west, south, east, north = self.region
            if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):
                raise ValueError('`region` is [west, south, east, north] in degrees with south < north')
        if self.dates and None not in self.dates and self.dates[0] > self.dates[1]:  # type: ignore[operator]
            raise ValueError('`dates` are [first, last] with the first not after the last')
        return self


class RowFilter:
    """The filters that look at one row alone; made once a source, as it reads the region's file."""

    def __init__(self, filters: PhotoFilters) -> None:
        self.filters = filters
        self.outline = _read_region(filters.region) if isinstance(filters.region, Path) else None

    def mark(self, marks: Marks, untold: Set[str] = frozenset()) -> None:
        """Reject the rows that are not wanted.

        Args:
            marks: the rows.
            untold: columns that the images may yet fill in; the first filter that needs one ends the row of filters.
        """
        wanted, table = self.filters, marks.table
        lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
        if wanted.region is not None:
            marks.mark(~self._inside(lon, lat, marks.free), 'outside the region')
        if wanted.null_island_km is not None:
            marks.mark(_km_from_null_island(lon, lat) < wanted.null_island_km, 'near 0, 0')
        if wanted.integer_degrees:
            marks.mark((lon == np.round(lon)) & (lat == np.round(lat)), 'whole degrees')
        if 'accuracy_m' in untold:
            return
        accuracy = table['accuracy_m'].to_numpy()
        if wanted.max_accuracy_m is not None:
            marks.mark(accuracy > wanted.max_accuracy_m, 'position too inaccurate', _accuracies)
        if wanted.require_accuracy:
            marks.mark(np.isnan(accuracy), 'accuracy of the position unknown')
        if 'taken_at' in untold:
            return
        if wanted.dates is not None:
            self._mark_dates(marks, *wanted.dates)
        if wanted.licences is not None:
            self._mark_licences(marks, wanted.licences)
        if wanted.min_px is not None and 'width' not in untold:
            shorter = pc.min_element_wise(table['width'], table['height'], skip_nulls=False)
            small = pc.fill_null(pc.less(shorter, wanted.min_px), False)
            marks.mark(small.to_numpy(), 'too few pixels', _sizes)

    def _inside(self, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], free: Bools) -> Bools:
        if isinstance(self.filters.region, tuple):
            west, south, east, north = self.filters.region
            across = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
            return across & (lat >= south) & (lat <= north)
        inside = np.zeros(len(lon), dtype=bool)
        inside[free] = shapely.intersects_xy(self.outline, lon[free], lat[free])
        return inside

    def _mark_dates(self, marks: Marks, first: date | None, last: date | None) -> None:
        taken = marks.table['taken_at']
        marks.mark(pc.is_null(taken).to_numpy(), 'date unknown')
        micros = pc.fill_null(taken.cast(pa.int64()), 0).to_numpy()
        early = np.zeros(len(micros), dtype=bool) if first is None else micros < _micros(first)
        late = np.zeros(len(micros), dtype=bool) if last is None else micros >= _micros(last + timedelta(days=1))
        marks.mark(early | late, 'outside the dates', _stamps)

    def _mark_licences(self, marks: Marks, licences: list[str]) -> None:
        wanted = [licence_name(text).upper() for text in licences]
        coded = marks.table['licence'].combine_chunks().dictionary_encode()
        known = [name.upper() for name in coded.dictionary.to_pylist()]
        fits = [
            any(name == w or (name.rpartition('-')[0] == w and name[-1].isdigit()) for w in wanted) for name in known
        ]
        good = pa.array(fits, pa.bool_()).take(coded.indices)
        marks.mark(~pc.fill_null(good, False).to_numpy(zero_copy_only=False), 'licence is not wanted', _licences)


def mark_groups(marks: Marks, filters: PhotoFilters) -> None:
    """Reject rows against each other: duplicates, bursts, and authors with too many photos."""
    if filters.duplicates == 'none' and not filters.bursts and filters.max_per_author is None:
        return
    rows = np.flatnonzero(marks.free)
    rank = np.full(len(marks.table), -1, dtype=np.int64)
    rank[rows] = ranks(marks.table['photo_id'].take(pa.array(rows)), filters.seed)
    if filters.duplicates != 'none':
        _mark_duplicates(marks, filters, rank)
    if filters.bursts:
        _mark_bursts(marks, rank)
    if filters.max_per_author is not None:
        _mark_authors(marks, filters.max_per_author, rank)


def _mark_duplicates(marks: Marks, filters: PhotoFilters, rank: npt.NDArray[np.int64]) -> None:
    rows = np.flatnonzero(marks.free)
    part = marks.table.take(pa.array(rows)).select(['digest', 'dhash'])
    digest = part['digest'].to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
    dhash = part['dhash'].to_pandas(types_mapper={pa.uint64(): pd.UInt64Dtype()}.get)
    look = filters.duplicates == 'perceptual'
    kept = duplicate_of(digest, dhash if look else None, rank[rows], filters.max_distance)
    _mark_for(marks, rows, kept, 'duplicate photo', 'same picture as')


def _mark_bursts(marks: Marks, rank: npt.NDArray[np.int64]) -> None:
    table = marks.table
    micros = pc.fill_null(table['taken_at'].cast(pa.int64()), 0).to_numpy()
    timed = pc.is_valid(table['taken_at']).to_numpy() & (micros % 86_400_000_000 != 0)
    rows = np.flatnonzero(marks.free & timed)
    part = table.take(pa.array(rows))
    cell_lat = np.round(part['lat'].to_numpy() / BURST_CELL_DEG)
    wide = BURST_CELL_DEG / np.maximum(np.cos(np.deg2rad(cell_lat * BURST_CELL_DEG)), 0.01)
    author = pc.coalesce(
        pc.binary_join_element_wise('author', part['author'], ':'),
        pc.binary_join_element_wise('source', pc.fill_null(part['source'], ''), ':'),
    )
    keys = pd.DataFrame(
        {
            'author': author.combine_chunks().dictionary_encode().indices.to_numpy(),
            'lat': cell_lat,
            'lon': np.round(part['lon'].to_numpy() / wide),
            'minute': micros[rows] // 60_000_000,
        }
    )
    group = keys.groupby(list(keys), sort=False).ngroup().to_numpy()
    kept = duplicate_of(pd.Series(group).astype('Int64'), None, rank[rows])
    _mark_for(marks, rows, kept, 'burst', 'same author, place and minute as')


def _mark_authors(marks: Marks, most: int, rank: npt.NDArray[np.int64]) -> None:
    known = marks.free & pc.is_valid(marks.table['author']).to_numpy()
    rows = np.flatnonzero(known)
    names = marks.table['author'].take(pa.array(rows)).combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((rank[rows], names))
    first = np.searchsorted(names[order], np.arange(names.max(initial=-1) + 1))
    place = np.arange(len(order)) - first[names[order]]
    where = np.zeros(len(marks.table), dtype=bool)
    where[rows[order[place >= most]]] = True
    marks.mark(
        where, f'author already has {most} photos', lambda t: pc.binary_join_element_wise('by', t['author'], ' ')
    )


def _mark_for(marks: Marks, rows: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], reason: str, words: str) -> None:
    """Reject the rows in whose place another one is kept; the detail names that one."""
    lost = kept >= 0
    where = np.zeros(len(marks.table), dtype=bool)
    where[rows[lost]] = True
    ids = marks.table['photo_id'].take(pa.array(rows[kept[lost]]))
    marks.mark(where, reason, lambda _: pc.binary_join_element_wise(words, ids, ' '))


def _read_region(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f'There is no file {path}; set photos.filters.region to a polygon file or a bounding box.')
    try:
        outline = shapely.union_all(shapely.make_valid(read_vector(path).geometry.dropna().to_numpy()))
    except Exception as error:  # readers raise types of their own: the user needs the file's name
        reason = ' '.join(str(error).split())
        raise InputError(f'{path} cannot be read as a region ({reason}); give GeoJSON or GeoPackage.') from None
    if shapely.area(outline) == 0:
        raise InputError(f'{path} holds no polygon; give the outline of the region.')
    shapely.prepare(outline)
    return outline


def _km_from_null_island(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Great-circle distance from 0, 0."""
    x, y = np.deg2rad(lon), np.deg2rad(lat)
    angle = np.arctan2(np.hypot(np.cos(y) * np.sin(x), np.sin(y)), np.cos(y) * np.cos(x))
    return EARTH_RADIUS_M / 1000 * angle


def _micros(day: date) -> int:
    midnight = datetime.combine(day, time(), timezone.utc)
    return (midnight - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def _accuracies(rows: Any) -> Any:
    return pc.binary_join_element_wise('accuracy', pc.cast(pc.round(rows['accuracy_m'], 1), pa.string()), 'm', ' ')


def _stamps(rows: Any) -> Any:
    naive = rows['taken_at'].cast(pa.timestamp('us'))
    return pc.binary_join_element_wise('taken', pc.cast(pc.cast(naive, pa.date32(), safe=False), pa.string()), ' ')


def _licences(rows: Any) -> Any:
    return pc.fill_null(rows['licence'], 'licence unknown')


def _sizes(rows: Any) -> Any:
    width, height = (pc.cast(rows[n], pa.string()) for n in ('width', 'height'))
    return pc.binary_join_element_wise(width, height, ' x ')
