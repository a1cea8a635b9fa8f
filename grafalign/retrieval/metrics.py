"""Recall and average precision of retrieval; see `ranks.py` for what they are computed from and the rule for ties."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grafalign.retrieval.ranks import Floats, Ints, hits_at, positive_ranks


def recall_at(
    queries: Floats,
    gallery: Floats,
    query_of_pair: Ints,
    item_of_pair: Ints,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[int, float]:
    """Share of queries with a positive among their k nearest, over the queries that have positives.

    Args:
        queries: vectors [Q, D].
        gallery: vectors [G, D].
        query_of_pair: query of each positive pair, [N].
        item_of_pair: its gallery item, [N].
        ks: cut-offs.

    Raises:
        GrafalignError: widths differ, or values are not finite.
    """
    ranks = positive_ranks(queries, gallery, query_of_pair, item_of_pair, best_only=True)
    return {k: float(hits_at(ranks, k).mean()) for k in ks}


def average_precision_at(relevant: npt.NDArray[np.bool_], total: Ints) -> npt.NDArray[np.float64]:
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
