"""From a table's cells to numbers, times and licences, whole columns at a time; what makes no sense becomes missing."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Column: TypeAlias = pa.ChunkedArray | pa.Array
"""A column of Arrow (which has no types of its own: a checker takes it for anything)."""
Floats = npt.NDArray[np.float64]
TIME = pa.timestamp('us', 'UTC')
_NUMBER = r'^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$'
_ISO = r'^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?Z?$'
_COMPACT = r'^(19|20)\d{6}(\d{6})?$'
_MILLISECONDS = 1e11
"""Epoch times from here on are milliseconds: as seconds, that would be the year 5138."""
_SMALLEST_S = 1e8
"""3 March 1973: smaller numbers are years, months or days, and hardly ever a photo's time."""
_LARGEST_S = 253_402_300_799
"""The end of the year 9999."""


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, however it is kept."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def texts(column: Column) -> Column:
    """A column as Arrow strings; blanks around are stripped and empty cells are missing."""
    column = whole(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):  # an id that a table keeps as a number
        values = column.to_numpy(zero_copy_only=False)
        if bool(np.all(np.isnan(values) | (values == np.round(values)) & (np.abs(values) < 2**53))):
            column = pc.cast(pc.if_else(pc.is_nan(column), None, column), pa.int64())
    if pa.types.is_list(column.type) or pa.types.is_struct(column.type):
        return pa.nulls(len(column), pa.string())
    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return pc.if_else(pc.equal(trimmed, ''), None, trimmed)


def numbers(column: Column) -> Floats:
    """A column as float64, NaN where it is missing, no number or infinite."""
    column = whole(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type):
        column = pc.cast(column, pa.string())
        trimmed = pc.utf8_trim_whitespace(column)
        try:
            column = pc.cast(trimmed, pa.float64())
        except pa.ArrowInvalid:
            column = pc.cast(pc.if_else(pc.match_substring_regex(trimmed, _NUMBER), trimmed, None), pa.float64())
    elif not (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
    ):
        return np.full(len(column), np.nan)
    values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(values), values, np.nan)


def truths(column: Column) -> npt.NDArray[np.bool_]:
    """A column as booleans: `true`, `t`, `yes` and `1` in any case; all else is false."""
    lower = pc.utf8_lower(texts(column))
    known = pc.is_in(lower, value_set=pa.array(['true', 't', 'yes', '1', '1.0']))
    found: npt.NDArray[np.bool_] = known.to_numpy(zero_copy_only=False).astype(bool)
    return found


def times(column: Column) -> Column:
    """A column as UTC times: dates in any spelling, or numbers of seconds or milliseconds since 1970.

    Every cell is judged by itself, so that the result does not depend on the rows around it: numbers of 8 or 14 digits
    that begin with 19 or 20 are dates (`20151024`, also where a gap in its column made it `20151024.0`), numbers from
    1e11 on are milliseconds, and those below 1e8 (1973) are no times: years, months and spreadsheets' serial numbers.
    A text without a year of four digits is no time either: a clock alone would mean today, another day each time.
    See `spelled_times` for the order of day and month.
    """
    column = whole(column)
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = pc.cast(column, pa.timestamp('us', getattr(kind, 'tz', None)), safe=False)
        return pc.cast(stamps if getattr(kind, 'tz', None) else pc.assume_timezone(stamps, 'UTC'), TIME)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = numbers(column)
        if not bool(np.any(values == np.round(values))):
            return _epoch(values)
        column = pa.array(
            [None if v != v else repr(int(v)) if v == int(v) else repr(v) for v in values.tolist()], pa.string()
        )
    cells = pc.replace_substring_regex(texts(column), r'^(\d{8,})\.0*$', r'\1')
    cells = pc.replace_substring_regex(cells, r'^(\d{4}):(\d{2}):(\d{2})', r'\1-\2-\3')  # as EXIF writes them
    compact = pc.match_substring_regex(cells, _COMPACT)
    if pc.any(compact).as_py():
        spelled = pc.replace_substring_regex(cells, r'^(\d{4})(\d{2})(\d{2})$', r'\1-\2-\3')
        spelled = pc.replace_substring_regex(
            spelled, r'^(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})$', r'\1-\2-\3 \4:\5:\6'
        )
        cells = pc.if_else(compact, spelled, cells)
    number = pc.fill_null(pc.match_substring_regex(cells, _NUMBER), False)
    if pc.all(number).as_py():
        return _epoch(numbers(cells))
    found = _spelled(pc.if_else(number, None, cells))
    if pc.any(number).as_py():
        found = pc.coalesce(found, _epoch(numbers(cells)))
    return found


def _epoch(values: Floats) -> Any:
    seconds = np.where(np.abs(values) > _MILLISECONDS, values / 1000, values)
    sane = (np.abs(seconds) <= _LARGEST_S) & (np.abs(seconds) >= _SMALLEST_S)
    micros = np.round(np.where(sane, seconds, 0) * 1e6).astype(np.int64)
    return pa.array(micros, mask=~sane).cast(TIME)


def _spelled(cells: Column) -> Column:
    """Times of text: the common ISO forms by Arrow, the others by pandas, each row in its own spelling."""
    plain = pc.fill_null(pc.match_substring_regex(cells, _ISO), False)
    try:
        bare = pc.utf8_rtrim(pc.if_else(plain, cells, None), 'Z')
        fast = pc.assume_timezone(pc.cast(bare, pa.timestamp('us')), 'UTC')
        rest = pc.if_else(plain, None, cells)
    except pa.ArrowInvalid:  # such as the 30th of February
        fast, rest = pa.nulls(len(cells), TIME), cells
    dated = pc.fill_null(pc.match_substring_regex(rest, r'(^|\D)\d{4}(\D|$)'), False)
    rest = pc.if_else(dated, rest, None)
    if rest.null_count < len(rest):
        where = pc.is_valid(rest)
        others = pd.to_datetime(
            pd.Series(rest.filter(where).to_pylist(), dtype=object), utc=True, errors='coerce', format='mixed'
        )
        slow = pa.array(others.astype('datetime64[us, UTC]'), type=TIME)
        fast = pc.replace_with_mask(fast, where, slow)
    return fast


def whole(column: Column) -> Column:
    """One Arrow array of what may be in chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def licence_name(text: str) -> str:
    """An SPDX-like name of a Creative Commons licence given by name, address or abbreviation; else the text as it is.

    `https://creativecommons.org/licenses/by-sa/2.0/`, `CC BY-SA 2.0` and `cc-by-sa-2.0` are all CC-BY-SA-2.0; the names
    are those of https://spdx.org/licenses. A licence whose version is not told has none: CC-BY-SA.
    """
    lower = text.strip().lower()
    if re.search(r'publicdomain/zero|\bcc[ -]?0\b|\bcc[ -]zero\b', lower):
        return 'CC0-1.0'
    if 'publicdomain/mark' in lower:
        return 'PDM-1.0'
    address = re.search(r'creativecommons\.org/licen[sc]es/([a-z-]+)/(\d\.\d)', lower)
    named = re.match(r'cc[ -](by(?:[ -](?:nc|nd|sa))*)(?:[ -]v?(\d\.\d))?(?:[ -]\w+)?$', lower)
    found = address or named
    if found is None:
        return text.strip()
    parts = found[1].replace(' ', '-').upper()
    return f'CC-{parts}-{found[2]}' if found[2] else f'CC-{parts}'


def licence_names(column: Column) -> Column:
    """`licence_name` of every cell, each spelling worked out once."""
    coded = texts(column).dictionary_encode()
    names = pa.array([licence_name(t) for t in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)
