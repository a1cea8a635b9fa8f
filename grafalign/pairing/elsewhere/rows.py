"""Rows of pairs, as tables and published layouts give them: one photo, one tile, and what is known of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from grafalign.errors import InputError
from grafalign.photos.batches import read_batches
from grafalign.photos.guess import GUESSES as OF_PHOTOS
from grafalign.photos.values import numbers, texts

TEXTS = ('photo', 'tile', 'photo_id', 'tile_id', 'place', 'split', 'role', 'taken_at', 'licence', 'author', 'source')
NUMBERS = ('lon', 'lat', 'tile_lon', 'tile_lat', 'row', 'col', 'heading_deg', 'field_of_view_deg', 'accuracy_m')
COLUMNS = (*TEXTS, *NUMBERS)
PROBLEM = 'problem'
"""Beside them: why a row cannot be used, as far as the table itself tells."""
ROLES = ('pair', 'semi', 'gallery')
GUESSES = {name: OF_PHOTOS.get(name, (name,)) for name in COLUMNS} | {
    'photo_id': ('photo_id',),
    'photo': ('photo', 'ground', 'panorama', 'street', 'query', 'uri', 'photo_file'),
    'tile': ('tile', 'overhead', 'satellite', 'sat', 'aerial', 'reference', 'tile_file'),
    'place': ('place', 'place_id', 'location'),
}
_UNKNOWN = ('', 'nan', 'na', 'n/a', 'none', 'null', '-')
"""How tables write that a number is not known."""
_FIELD = re.compile(r'{([^{}]+)}')


@dataclass(frozen=True)
class PairRows:
    """Rows of pairs.

    Attributes:
        frame: `COLUMNS` and `problem`. `photo` and `tile` name files, below `root` unless they are absolute; a row
            without a photo is a tile that is only searched among. `lon` and `lat` are those of the photo, `row` and
            `col` where it stands in the tile's picture, in pixels from its upper left corner. `role` is `pair`; or
            `semi`: the tile shows the photo's place, but is not the one to be found; or `gallery`: both are searched
            among, and neither is asked for.
        root: folder of the files.
        gsd_m: metres a pixel of the pictures, where a layout knows it.
        malformed: lines that are no rows, and what is wrong with them.
    """

    frame: pd.DataFrame
    root: Path
    gsd_m: float | None = None
    malformed: list[tuple[str, str]] = field(default_factory=list)


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """All columns in their types, those that lack as unknown."""
    columns = {}
    for name in COLUMNS:
        column = frame.get(name)
        if name in NUMBERS:
            columns[name] = np.full(len(frame), np.nan) if column is None else column.to_numpy(dtype=np.float64)
        else:
            empty = pd.Series(pd.NA, index=frame.index, dtype='string')
            columns[name] = empty if column is None else column.astype('string')
    problem = frame.get(PROBLEM, pd.Series(pd.NA, index=frame.index))
    columns[PROBLEM] = problem.astype('string')
    made = pd.DataFrame(columns, index=frame.index).reset_index(drop=True)
    return made.assign(role=made['role'].fillna('pair'))


def read_table(path: Path, columns: Mapping[str, str], root: Path | None) -> PairRows:
    """Rows of a table.

    Args:
        path: CSV, TSV, JSONL or Parquet.
        columns: our names to those of the table, or to patterns of them in braces.
        root: folder of the files; the table's own by default.

    Raises:
        GrafalignError: the table cannot be read, or a column is missing.

    Example:
        `{'photo': 'ground/{name}.jpg'}` makes `ground/17.jpg` of a row whose `name` is 17.
    """
    if not path.is_file():
        raise InputError(f'There is no table {path}; give a CSV, TSV, JSONL or Parquet file, or a folder and --layout.')
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise InputError(f'There is no column {unknown[0]!r} to name; known are {", ".join(COLUMNS)}.')
    sources: dict[str, str] = {}

    def choose(names: list[str]) -> list[str]:
        sources.update(_sources(path, names, columns))
        return list(dict.fromkeys(name for source in sources.values() for name in _named(source)))

    parts, malformed = [], []
    for batch in read_batches(str(path), choose):
        malformed += batch.malformed
        if len(batch.table):
            plain = {name: texts(batch.table[name]) for name in batch.table.column_names}
            made = {PROBLEM: pd.Series(pd.NA, index=range(len(batch.table)), dtype='string')}
            for ours, source in sources.items():
                if ours in NUMBERS:
                    made[ours] = pd.Series(numbers(batch.table[source]))
                    said = _filled(source, plain).str.strip().fillna('')
                    odd = made[ours].isna() & ~said.str.lower().isin(_UNKNOWN)
                    made[PROBLEM] = made[PROBLEM].mask(odd & made[PROBLEM].isna(), f'{ours} is no number')
                else:
                    made[ours] = _filled(source, plain)
            parts.append(complete(pd.DataFrame(made)))
    if not parts:
        raise InputError(f'{path} has no rows; give a table with one pair a row.')
    return PairRows(pd.concat(parts, ignore_index=True), (root or path.parent).resolve(), None, malformed)


def _sources(path: Path, names: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our columns to a column of the table or a pattern of its columns."""
    shown = ', '.join(names[:40])
    lower = {name.lower(): name for name in reversed(names)}
    found = {ours: lower[g] for ours, guesses in reversed(GUESSES.items()) for g in reversed(guesses) if g in lower}
    for ours, source in columns.items():
        lacking = [name for name in _named(source) if name not in names]
        if lacking:
            raise InputError(f'{path} has no column {lacking[0]!r} for {ours}; its columns are {shown}.')
        if ours in NUMBERS and source not in names:
            raise InputError(f'{ours} is a number: name one column of {path} for it, not the pattern {source!r}.')
        found[ours] = source
    for needed in ('photo', 'tile'):
        if needed not in found:
            raise InputError(
                f'{path} has no column for the file of the {needed}; name it, for example --column {needed}=COLUMN or '
                f"--column {needed}='folder/{{COLUMN}}.jpg'. Its columns are {shown}."
            )
    return found


def _named(source: str) -> list[str]:
    """The columns that a column's name or a pattern stands for."""
    return _FIELD.findall(source) or [source]


def _filled(source: str, columns: Mapping[str, object]) -> pd.Series:
    """A column of texts, or a pattern with each row's own values; missing where one of them is."""
    if source in columns:
        return pd.Series(columns[source].to_pandas(), dtype='string')  # type: ignore[attr-defined]
    text, at = pd.Series('', index=range(len(next(iter(columns.values())))), dtype='string'), 0  # type: ignore[arg-type]
    for match in _FIELD.finditer(source):
        text = text + source[at : match.start()] + _filled(match[1], columns)
        at = match.end()
    return text + source[at:]
