"""Which pairs are held out: whole places go to one split."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from grafalign import console
from grafalign.errors import InputError
from grafalign.geo import blocks_touched
from grafalign.pairing.splits import split_of_blocks

NAMES = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val', 'test': 'test'}
BLOCK_KM = 20.0
"""Side of the blocks of land that stand for places where the table names none; as in recipes."""


def splits_of(rows: pd.DataFrame, shares: dict[str, float], seed: int, source: str) -> npt.NDArray[np.object_]:
    """The split of every row.

    Rows that share a photo, a tile or a place belong together. A column `split` is taken as it is; otherwise places are
    drawn by a keyed hash: of `place` where the table has that column; else of the block of land that the row's photo or
    tile lies in, and of the tile where neither position is known. Whatever the order of the rows, it is the same draw.

    Args:
        rows: of `rows.COLUMNS`.
        shares: of places in each split.
        seed: of the draw.
        source: what errors call the table.

    Returns:
        `train`, `val` or `test` for each row.

    Raises:
        GrafalignError: the column names another split, or puts a place, tile or photo into two.
    """
    group = groups(rows)
    if rows['split'].notna().any():
        return _given(rows, group, source)
    files = rows['tile_id'].fillna(rows['tile']).fillna(rows['photo'])
    if rows['place'].notna().any():
        names = rows['place'].fillna(files)
    else:
        blocks = _blocks(rows)
        group = groups(rows.assign(place=blocks))
        names = blocks.fillna(files)
        without = int(blocks.isna().sum())
        if 0 < without < len(rows):
            console.log(f'{source}: {without:,} of {len(rows):,} rows have no position; they are split tile by tile')
    number = np.array([_number(name) for name in names], dtype=np.int64)
    least = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, group, number)
    return np.asarray(split_of_blocks(least, shares, seed)[group], dtype=object)


def _blocks(rows: pd.DataFrame) -> pd.Series:
    """Block of land of each row, by its photo's position or its tile's; missing where none is known."""
    lon, lat = (rows[name].fillna(rows[f'tile_{name}']).to_numpy() for name in ('lon', 'lat'))
    known = np.isfinite(lon) & np.isfinite(lat)
    blocks = pd.Series(pd.NA, index=rows.index, dtype='string')
    places = lon[known], lat[known]
    blocks[known] = blocks_touched(*places, *places, BLOCK_KM, 1)[:, 0].astype(str)
    return blocks


def groups(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Numbers of the groups of rows that share a photo, a tile or a place, directly or through others, [N]."""
    count = len(rows)
    ends, starts = [], []
    offset = count
    for column in ('photo', 'tile', 'place'):
        codes, names = pd.factorize(rows[column])
        there = codes >= 0
        starts.append(np.flatnonzero(there))
        ends.append(codes[there] + offset)
        offset += len(names)
    start, end = np.concatenate(starts), np.concatenate(ends)
    graph = coo_array((np.ones(len(start), bool), (start, end)), shape=(offset, offset))
    component = connected_components(graph, directed=False)[1][:count]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def _given(rows: pd.DataFrame, group: npt.NDArray[np.int64], source: str) -> npt.NDArray[np.object_]:
    said = rows['split'].str.lower().map(NAMES)
    wrong = np.flatnonzero(said.isna().to_numpy())
    if len(wrong):
        value = rows['split'].iloc[wrong[0]]
        what = 'no split' if pd.isna(value) else f'the split {value!r}'
        file = rows['photo'].fillna(rows['tile']).iloc[wrong[0]]
        raise InputError(f'{source}: the row of {file} has {what}; write train, val or test in every row.')
    names = said.to_numpy(dtype=object)
    for column in ('place', 'tile', 'photo'):
        known = rows[column].notna().to_numpy()
        sides = pd.Series(names[known]).groupby(rows[column].to_numpy()[known]).unique()
        double = sides[sides.map(len) > 1]
        if len(double):
            raise InputError(
                f'{source} puts the {column} {double.index[0]} into {" and ".join(sorted(double.iloc[0]))} '
                f'({len(double):,} such); give all rows of a {column} one split, or leave the column out.'
            )
    return names


def _number(name: object) -> int:
    """A whole number that stands for a name."""
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), 'little') >> 1
