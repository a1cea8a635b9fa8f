"""Times as tables spell them: numbers that are no dates, days and months in either order, clocks without a zone.

A cell is judged by itself, but for one thing that no cell can tell: whether 10/9/2016 is the 10th of September or the
9th of October. A column has one order, so the rows that prove it (30/9/2016) decide for all, whichever batch they are
in; where none does, the user is asked (`photos.taken_at.day_first`) rather than guessed for.
"""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from grafalign.config import Settings
from grafalign.errors import InputError
from grafalign.photos.values import TIME, Column, is_text, texts, times

_NUMERIC_DAY = r'^(?P<first>\d{1,2})(?P<mark>[/.\-])(?P<second>\d{1,2})[/.\-](?P<year>\d{4})(?P<rest>[ T,].*)?$'
_HAS_ZONE = r'(?i)(\d\s*Z|UTC|GMT|:\d{2}(\.\d+)?\s*[+-]\d{2}:?\d{2})$'


class TimeSettings(Settings):
    """The `photos.taken_at:` part of a recipe."""

    day_first: bool | None = None
    """Whether 10/9/2016 is in September. By default the column tells, by a day above 12; 10.9.2016 is day first."""
    format: str | None = None
    """How all times of the table are spelled, in the codes of Python's strptime: `%d/%m/%Y %H:%M`."""
    zone: str | None = None
    """Time zone of times that name none, such as `Europe/Rome`; UTC by default."""

    @model_validator(mode='after')
    def _known_zone(self) -> Self:
        if self.zone is not None and self.zone not in zoneinfo.available_timezones():
            raise ValueError(f'`zone` knows names such as Europe/Rome, not {self.zone!r}')
        if self.format is not None and '%' not in self.format:
            raise ValueError('`format` needs codes of strptime, such as %d/%m/%Y')
        return self


def read_times(column: Column, settings: TimeSettings) -> tuple[Column, Column]:
    """UTC times of a column, and the texts of those cells whose day and month cannot be told apart.

    Args:
        column: Arrow column of any type.
        settings: what the recipe says of it.

    Returns:
        Times (missing where a cell makes no sense, or is among the second), and texts (missing elsewhere).
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        naive = getattr(kind, 'tz', None) is None
        return _in_zone(times(column), settings, np.full(len(column), naive)), pa.nulls(len(column), pa.string())
    if settings.format is not None:
        return _formatted(texts(column), settings), pa.nulls(len(column), pa.string())
    if not is_text(kind):
        return times(column), pa.nulls(len(column), pa.string())
    cells = texts(column)
    plain, unsure = _ordered(cells, settings.day_first)
    if settings.zone is None:
        return times(plain), unsure
    naive = pc.fill_null(pc.invert(pc.match_substring_regex(plain, _HAS_ZONE)), False).to_numpy(zero_copy_only=False)
    numbers = pc.fill_null(pc.match_substring_regex(plain, r'^[+-]?\d{9,}(\.\d*)?$'), False)
    compact = pc.fill_null(pc.match_substring_regex(plain, r'^(19|20)\d{12}$'), False)
    epoch = pc.and_(numbers, pc.invert(compact)).to_numpy(zero_copy_only=False)
    return _in_zone(times(plain), settings, naive & ~epoch), unsure


def settled(unsure: Column, settings: TimeSettings, day_first: bool) -> Column:
    """Times of the cells that `read_times` left open, once their order is known."""
    return read_times(unsure, settings.model_copy(update={'day_first': day_first}))[0]


@dataclass
class DayOrder:
    """What the rows of a column prove about the order of day and month; batches are shown to it one by one."""

    source: str
    day_first: str | None = None
    """A cell that can only be day first."""
    month_first: str | None = None
    """A cell that can only be month first."""

    def see(self, column: Column) -> None:
        """Look at the cells of a batch."""
        if not is_text(column.type):
            return
        parts = pc.extract_regex(texts(column), _NUMERIC_DAY)
        rows = np.flatnonzero(pc.is_valid(parts).to_numpy(zero_copy_only=False))
        if not len(rows):
            return
        cells = texts(column).take(pa.array(rows))
        first, second = (_field(parts, n, rows) for n in ('first', 'second'))
        for name, proves in (('day_first', first > 12), ('month_first', second > 12)):
            if getattr(self, name) is None and proves.any():
                setattr(self, name, cells[int(np.flatnonzero(proves)[0])].as_py())

    def decide(self, example: str) -> bool:
        """Whether the day comes first.

        Raises:
            GrafalignError: no row proves it, or some prove the one and some the other.
        """
        if self.day_first is None and self.month_first is None and re.match(r'\d{1,2}\.', example):
            return True  # dots are day first wherever they are used, if nothing says otherwise
        if (self.day_first is None) == (self.month_first is None):
            why = (
                'no row shows which comes first'
                if self.day_first is None
                else f'the column has both {self.day_first} and {self.month_first}'
            )
            raise InputError(
                f'{self.source}: day and month of {example!r} cannot be told apart ({why}); set '
                'photos.taken_at.day_first to true or false, or photos.taken_at.format.'
            )
        return self.day_first is not None


def _ordered(cells: Column, day_first: bool | None) -> tuple[Column, Column]:
    """Numeric dates as ISO spells them, all else as it is; and cells whose order is open, missing from the first."""
    parts = pc.extract_regex(cells, _NUMERIC_DAY)
    rows = np.flatnonzero(pc.is_valid(parts).to_numpy(zero_copy_only=False))
    unsure = pa.nulls(len(cells), pa.string())
    if not len(rows):
        return cells, unsure
    first, second, year = (_field(parts, n, rows) for n in ('first', 'second', 'year'))
    rest = pc.struct_field(parts, 'rest').take(pa.array(rows)).to_pylist()
    order = np.full(len(rows), -1 if day_first is None else int(day_first))
    order = np.where((first > 12) | (first == second), 1, np.where(second > 12, 0, order))
    day, month = np.where(order == 1, first, second), np.where(order == 1, second, first)
    spelled = [
        f'{y:04d}-{m:02d}-{d:02d}{r or ""}' if o >= 0 else None
        for y, m, d, r, o in zip(year, month, day, rest, order, strict=True)
    ]
    open_cells = [c if o < 0 else None for c, o in zip(cells.take(pa.array(rows)).to_pylist(), order, strict=True)]
    where = np.zeros(len(cells), dtype=bool)
    where[rows] = True
    mask = pa.array(where)
    return (
        pc.replace_with_mask(cells, mask, pa.array(spelled, pa.string())),
        pc.replace_with_mask(unsure, mask, pa.array(open_cells, pa.string())),
    )


def _field(parts: Column, name: str, rows: Column) -> Column:
    return pc.cast(pc.struct_field(parts, name).take(pa.array(rows)), pa.int64()).to_numpy(zero_copy_only=False)


def _formatted(cells: Column, settings: TimeSettings) -> Column:
    series = pd.Series(cells.to_pylist(), dtype=object)
    try:
        found = pd.to_datetime(series, format=settings.format, errors='coerce', utc='%z' in str(settings.format))
    except ValueError as error:
        raise InputError(f'photos.taken_at.format: {settings.format!r} cannot be used ({error}); mend it.') from None
    if found.dt.tz is None:
        found = _localised(found, settings.zone)
    return pa.array(found.astype('datetime64[us, UTC]'), type=TIME)


def _in_zone(found: Column, settings: TimeSettings, naive: Column) -> Column:
    """Times that were taken for UTC, read in the zone of the settings where they named none."""
    if settings.zone is None or not naive.any():
        return found
    series = pd.Series(found.to_pandas())
    local = _localised(series[naive].dt.tz_localize(None), settings.zone)
    series[naive] = local
    return pa.array(series.astype('datetime64[us, UTC]'), type=TIME)


def _localised(series: Any, zone: str | None) -> Any:
    """Naive times as UTC; where clocks are turned back the first of the two hours is meant, where forward, the next."""
    known = series.dt.tz_localize(
        zone or 'UTC', ambiguous=np.ones(len(series), dtype=bool), nonexistent='shift_forward'
    )
    return known.dt.tz_convert('UTC')
