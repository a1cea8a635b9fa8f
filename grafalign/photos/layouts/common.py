"""What the readers of published layouts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.errors import InputError
from grafalign.photos.opening import name_of
from grafalign.photos.values import Column, numbers

FLICKR_LEVEL_M = 1_565_430.3
"""Ten pixels of a 256-pixel web map of the whole Earth, in metres at the equator."""


def choose_from(path: str, layout: str, needed: Sequence[str], wanted: Sequence[str] = ()) -> Callable[..., list[str]]:
    """A chooser of columns for `read_batches`: all that are needed, and those of the others that are there.

    Raises (when called):
        GrafalignError: a needed column is not there.
    """

    def choose(names: list[str]) -> list[str]:
        missing = [n for n in needed if n not in names]
        if missing:
            raise InputError(
                f'{path} has no column {" and ".join(missing)}, so it is not in the layout {layout}; check '
                f'photos.layout. Its columns are {", ".join(names[:40])}.'
            )
        return [*needed, *(n for n in wanted if n in names and n not in needed)]

    return choose


def column_or_none(table: pa.Table, name: str) -> Column:
    """A column, or strings that are all missing where the table has none of that name."""
    return table[name] if name in table.column_names else pa.nulls(len(table), pa.string())


def flickr_accuracy_m(levels: Column) -> Column:
    """Metres for Flickr's accuracy levels, which are zoom levels: World 1, Country 3, Region 6, City 11, Street 16.

    Flickr publishes no metres. We take ten pixels of the map at that zoom, for how well people place a pin: 24 m at
    level 16, 764 m at level 11, 24 km at level 6. Level 0 and missing ones are unknown. Source:
    https://www.flickr.com/services/api/flickr.photos.geo.photosForLocation.html, argument `accuracy`.
    """
    level = numbers(levels)
    return pa.array(np.where((level >= 1) & (level <= 16), FLICKR_LEVEL_M / 2.0**level, np.nan))


def where_true(rows: Column, reason: str) -> Column:
    """A column `problem` that holds the reason in the rows that are true."""
    return pc.if_else(pa.array(np.asarray(rows, dtype=bool)), reason, pa.scalar(None, pa.string()))


def pick_file(files: Sequence[str], part: str, layout: str) -> str:
    """The file of a dump whose name begins with `part`, among those given or beside the first of them.

    Raises:
        InputError: there is none, and the layout cannot do without.
    """
    found = find_file(files, part)
    if found is None:
        _, dot, suffix = name_of(files[0]).partition('.')
        raise InputError(
            f'{files[0]} has no {part}{dot}{suffix} beside it, which the layout {layout} needs; give the '
            'folder of the dump, or a list of its files, as photos.table.'
        )
    return found


def find_file(files: Sequence[str], part: str) -> str | None:
    """As `pick_file`, but None where there is none."""
    for file in files:
        if name_of(file).lower().startswith(part):
            return file
    first = files[0]
    _, dot, suffix = name_of(first).partition('.')
    if len(files) == 1 and '://' not in first:
        folder = Path(first).parent
        for candidate in (f'{part}{dot}{suffix}', *(f'{part}.{s}' for s in ('csv', 'csv.gz', 'tsv', 'tsv.gz'))):
            if (folder / candidate).is_file():
                return str(folder / candidate)
    return None
