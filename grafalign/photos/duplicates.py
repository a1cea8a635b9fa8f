"""Find photos that are the same picture, without comparing every pair.

Two 64-bit hashes that differ in at most d bits agree in at least k - d of k bands that cut the bits up. So each choice
of k - d bands is a key: hashes are sorted by it, and only neighbours with the same key are compared. Nothing within d
bits is missed; k is chosen so that sorting and comparing together cost the least (multi-index hashing after Norouzi,
Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012; several bands together as in
Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
BITS = 64
_MAX_KEYS = 100
_SAMPLE = 50_000
_SORTING = 20
"""Comparisons of two hashes that cost as much as sorting one."""
_MAX_EDGES = 4_000_000
"""Pairs held before they are merged into groups."""


def duplicate_of(digests: Any, dhashes: Any, rank: Ints, max_distance: int = 0) -> Ints:
    """Which rows are duplicates, and of which.

    Rows with the same digest belong together, and so do rows whose dHashes differ in at most `max_distance` bits;
    groups are what is connected by such pairs, and of each group the row of lowest rank is kept. The result does not
    depend on the order of the rows.

    Args:
        digests: one string a row, missing where unknown; or None to compare no bytes.
        dhashes: one 64-bit number a row, missing where unknown; or None to compare no pictures.
        rank: one number a row, all different.
        max_distance: largest number of different bits.

    A dHash of 0 says that a picture has no structure at all; it is like no other.

    Returns:
        For every row the row that is kept in its place, or -1 if it is kept itself.
    """
    count = len(rank)
    label = np.arange(count, dtype=np.int64)
    if digests is not None:
        codes, _ = pd.factorize(pd.Series(digests), use_na_sentinel=True)
        label = _merged(label, *_chains(np.flatnonzero(codes >= 0), codes))
    if dhashes is not None:
        column = pd.Series(dhashes)
        rows = np.flatnonzero(column.fillna(0).to_numpy(dtype=np.uint64))
        if len(rows):
            hashes = column.iloc[rows].to_numpy(dtype=np.uint64)
            unique, code = np.unique(hashes, return_inverse=True)
            codes = np.full(count, -1, dtype=np.int64)
            codes[rows] = code
            label = _merged(label, *_chains(rows, codes))
            if max_distance > 0:
                _, one = np.unique(code, return_index=True)
                near = _near(unique, max_distance)
                label = _merged(label, rows[one], rows[one][near])
    return _lowest(label, np.asarray(rank))


def _near(hashes: Hashes, max_distance: int) -> Ints:
    """For every hash a member of its group, the same for all of the group."""
    label = np.arange(len(hashes), dtype=np.int64)
    batches: list[tuple[Ints, Ints]] = []
    edges = 0
    for first, second in close_pairs(hashes, max_distance):
        batches.append((first, second))
        edges += len(first)
        if edges > _MAX_EDGES:
            label = _merged(label, *(np.concatenate(side) for side in zip(*batches, strict=True)))
            batches, edges = [], 0
    if batches:
        label = _merged(label, *(np.concatenate(side) for side in zip(*batches, strict=True)))
    return label


def close_pairs(hashes: Hashes, max_distance: int) -> Any:
    """Yield pairs within `max_distance`; a pair may come more than once."""
    for mask in _masks(*_bands(hashes, max_distance)):
        keys = hashes & mask
        order = np.argsort(keys, kind='stable')
        keys, values = keys[order], hashes[order]
        step, active = 1, np.arange(len(hashes) - 1)
        while len(active):
            active = active[active + step < len(hashes)]
            active = active[keys[active] == keys[active + step]]
            close = np.bitwise_count(values[active] ^ values[active + step]) <= max_distance
            if close.any():
                yield order[active[close]], order[active[close] + step]
            step += 1


def _bands(hashes: Hashes, max_distance: int) -> tuple[int, int]:
    """How many bands to cut, and how many of them make a key: what costs the least by the look of a sample."""
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)]
    best = (math.inf, 1, 1)
    for bands in range(max_distance + 1, max_distance + 9):
        together = bands - max_distance
        keys = math.comb(bands, together)
        if keys > _MAX_KEYS and together > 1:
            break
        masks = list(_masks(bands, together))
        counts = [np.unique(sample & m, return_counts=True)[1] for m in masks[:: max(1, keys // 4)]]
        same = float(np.mean([(c * (c - 1.0)).sum() / 2 for c in counts])) * (len(hashes) / len(sample)) ** 2
        best = min(best, (keys * (_SORTING * len(hashes) + same), bands, together))
    return best[1], best[2]


def _masks(bands: int, together: int) -> Iterator[np.uint64]:
    """The bits of every choice of bands; neighbouring bits of a dHash go together, so a band takes bits from afar."""
    scattered = [(37 * i + 11) % BITS for i in range(BITS)]
    edges = np.linspace(0, BITS, bands + 1).round().astype(int)
    parts = [sum(1 << b for b in scattered[edges[i] : edges[i + 1]]) for i in range(bands)]
    for chosen in itertools.combinations(parts, together):
        yield np.uint64(sum(chosen))


def _chains(rows: Ints, codes: Ints) -> tuple[Ints, Ints]:
    """Pairs that connect all rows of the same code."""
    order = rows[np.argsort(codes[rows], kind='stable')]
    same = codes[order[1:]] == codes[order[:-1]]
    return order[1:][same], order[:-1][same]


def _merged(label: Ints, first: Ints, second: Ints) -> Ints:
    """Labels after joining the groups of some pairs of rows; a label is a row number."""
    if not len(first):
        return label
    count = len(label)
    a, b = np.concatenate([np.arange(count), first]), np.concatenate([label, second])
    graph = coo_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    _, one = np.unique(group, return_index=True)
    merged: Ints = one[group].astype(np.int64)
    return merged


def _lowest(label: Ints, rank: npt.NDArray[np.generic]) -> Ints:
    order = np.lexsort((rank, label))
    first = np.ones(len(order), dtype=bool)
    first[1:] = label[order[1:]] != label[order[:-1]]
    kept = np.empty(len(order), dtype=np.int64)
    kept[order] = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    return np.where(kept == np.arange(len(order)), -1, kept)
