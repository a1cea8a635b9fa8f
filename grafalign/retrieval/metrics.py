"""Ranks and average precision, a chunk of queries at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def recall_at(
    queries: Floats,
    gallery: Floats,
    query_of_pair: npt.NDArray[np.int64],
    item_of_pair: npt.NDArray[np.int64],
    ks: tuple[int, ...] = (1, 5, 10),
    chunk: int = 1024,
) -> dict[int, float]:
    """Share of queries with a positive among their k nearest, for queries that have positives.

    The rank of a query is the number of items that score strictly higher than its best positive.

    Args:
        queries: unit vectors [Q, D].
        gallery: unit vectors [G, D].
        query_of_pair: query of each positive pair, [N].
        item_of_pair: its gallery item, [N].
        ks: cut-offs.
        chunk: queries whose scores are held at a time.
    """
    order = np.argsort(query_of_pair, kind='stable')
    owner, item = query_of_pair[order], item_of_pair[order]
    asked = np.unique(owner)
    ranks = []
    for part in np.array_split(asked, max(1, -(-len(asked) // chunk))):
        scores = queries[part] @ gallery.T
        low, high = np.searchsorted(owner, [part[0], part[-1] + 1])
        best = np.full(len(part), -np.inf)
        local = np.searchsorted(part, owner[low:high])
        np.maximum.at(best, local, scores[local, item[low:high]])
        ranks.append((scores > best[:, None]).sum(1))
    rank = np.concatenate(ranks)
    return {k: float((rank < k).mean()) for k in ks}


def average_precision_at(relevant: npt.NDArray[np.bool_], total: npt.NDArray[np.int64]) -> Floats:
    """Average precision at k of ranked lists.

    AP@k = sum_{i <= k} precision@i * relevant_i / min(k, number of relevant items).

    Args:
        relevant: whether the item at each rank is relevant, best first, [Q, k].
        total: relevant items in the whole gallery, [Q].

    Returns:
        [Q]; NaN for a query with no relevant item.
    """
    k = relevant.shape[1]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, k + 1)
    found = (precision * relevant).sum(axis=1)
    return np.where(total > 0, found / np.maximum(np.minimum(k, total), 1), np.nan)
