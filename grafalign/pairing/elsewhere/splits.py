"""Which pairs are held out: whole places go to one split."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from grafalign.errors import InputError
from grafalign.geo import blocks_touched
from grafalign.pairing.plan import split_of_blocks

NAMES = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val', 'test': 'test'}
BLOCK_KM = 20.0
"""Side of the blocks of land that stand for places where all positions are known and nothing else is; as in recipes."""


def splits_of(rows: pd.DataFrame, shares: dict[str, float], seed: int, source: str) -> npt.NDArray[np.object_]:
    """The split of every row.

    Rows that share a photo, a tile or a place belong together. A column `split` is taken as it is; otherwise places are
    drawn by a keyed hash of their name: `place`, else the block of land of the photo, where all positions are known,
    else the tile.

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
    placed = rows['lon'].notna() & rows['lat'].notna()
    if rows['place'].notna().any():
        names = rows['place'].fillna(rows['tile']).fillna(rows['photo'])
    elif placed.all():
        lon, lat = rows['lon'].to_numpy(), rows['lat'].to_numpy()
        names = pd.Series(blocks_touched(lon, lat, lon, lat, BLOCK_KM, 1)[:, 0]).astype(str)
        group = groups(rows.assign(place=names.to_numpy()))
    else:
        names = rows['tile'].fillna(rows['photo'])
    first = names.to_numpy(dtype=object)[_first(group)]
    numbers = np.array([_number(name) for name in first], dtype=np.int64)
    return np.asarray(split_of_blocks(numbers, shares, seed)[group], dtype=object)


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
    found = connected_components(graph, directed=False)[1][:count]
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def _given(rows: pd.DataFrame, group: npt.NDArray[np.int64], source: str) -> npt.NDArray[np.object_]:
    said = rows['split'].str.lower().map(NAMES)
    wrong = np.flatnonzero(said.isna().to_numpy())
    if len(wrong):
        value = rows['split'].iloc[wrong[0]]
        what = 'no split' if pd.isna(value) else f'the split {value!r}'
        raise InputError(f'{source}, row {wrong[0] + 1} has {what}; write train, val or test in every row.')
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


def _first(group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first row of every group."""
    return np.unique(group, return_index=True)[1]


def _number(name: object) -> int:
    """A whole number that stands for a name."""
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), 'little') >> 1
