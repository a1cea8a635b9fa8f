"""Ranks of positives without the score matrix: a block of scores at a time, and exact all the same.

Scores are multiplied in float32. An item whose float32 score is within rounding of a positive's is scored again in
float64, so that ranks are those of the float64 matrix. Memory is one block of scores, whatever the number of items.

Ties. Items with exactly a positive's score (a duplicate image, a caption written twice, a model that gives everything
the same vector) are in no order. Recall is the expectation over a random one, average precision takes the expected
place, so that no model gains by ties and no result depends on the order of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from grafalign.errors import InputError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
_BLOCK = 2048
"""Queries and items of a block of scores: 17 MB, large enough for the matrix product to run at full speed."""
_FEW = 50
"""So few scores of a block (one in 50) are looked at one by one."""
_ROWS = 16_384
"""Rows that are looked at, or scored again in float64, at a time."""


@dataclass(frozen=True)
class Ranks:
    """How many items that are no positives stand before each positive; N pairs of query and positive.

    Pairs are sorted by query, and within a query from the best positive to the worst.
    """

    query: Ints
    """[N]"""
    item: Ints
    """[N]"""
    above: Ints
    """Items, not positives of this query, that score higher than the pair, [N]."""
    tied: Ints
    """Items, not positives of this query, that score the same, [N]."""
    level: Ints
    """Pairs of one query with equal scores have equal levels, [N]."""

    @property
    def first(self) -> Ints:
        """Row of the best pair of every query that has one."""
        return np.flatnonzero(np.diff(self.query, prepend=-1))


def positive_ranks(
    queries: Floats, gallery: Floats, query_of_pair: Ints, item_of_pair: Ints, *, best_only: bool = False
) -> Ranks:
    """Rank the positives of every query among all items.

    Args:
        queries: vectors [Q, D]; scores are inner products.
        gallery: vectors [G, D].
        query_of_pair: query of each positive pair, [N]; a pair given twice counts once.
        item_of_pair: its gallery item, [N].
        best_only: rank only the best positive of each query (and those tied with it), which is all that recall
            needs.

    Returns:
        The ranks; queries without positives do not occur.

    Raises:
        GrafalignError: widths differ, or values are not finite.
    """
    _check(queries, gallery)
    for name, rows, most in (('query', query_of_pair, len(queries)), ('item', item_of_pair, len(gallery))):
        if len(rows) and (rows.min() < 0 or rows.max() >= most):
            raise InputError(
                f'A pair names {name} {rows.min() if rows.min() < 0 else rows.max()}, and there are {most}.'
            )
    pairs = np.unique(np.stack([query_of_pair, item_of_pair], axis=1).astype(np.int64).reshape(-1, 2), axis=0)
    score = _exact_scores(queries, gallery, pairs[:, 0], pairs[:, 1])
    order = np.lexsort((-score, pairs[:, 0]))
    owner, item, score = pairs[order, 0], pairs[order, 1], score[order]
    begins = np.diff(owner, prepend=-1) != 0
    level = np.cumsum(begins | (np.diff(score, prepend=np.nan) != 0))
    # what is counted once for all pairs of a level: the thresholds
    rows = np.flatnonzero(np.diff(level, prepend=-1))
    if best_only:
        rows = rows[begins[rows]]
    higher, equal = _count(queries, gallery, owner[rows], score[rows])
    # positives of the query itself do not stand before one another
    start = np.maximum.accumulate(np.where(begins, np.arange(len(owner)), 0))
    sizes = np.diff(np.append(np.flatnonzero(np.diff(level, prepend=-1)), len(level)))
    size_of = np.repeat(sizes, sizes)
    place = np.full(level[-1] + 1 if len(level) else 1, -1)
    place[level[rows]] = np.arange(len(rows))
    kept = np.flatnonzero(place[level] >= 0)
    number = place[level[kept]]
    first_of_level = rows[number]
    above = higher[number] - (first_of_level - start[kept])
    return Ranks(owner[kept], item[kept], above, equal[number] - size_of[kept], level[kept])


def _check(queries: Floats, gallery: Floats) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f'Queries {list(queries.shape)} and gallery {list(gallery.shape)} have different widths: '
            'they come from different models; embed both with one.'
        )
    for name, vectors in (('queries', queries), ('gallery', gallery)):
        for start in range(0, len(vectors), _ROWS):
            bad = np.flatnonzero(~np.isfinite(vectors[start : start + _ROWS]).all(1))
            if len(bad):
                raise InputError(f'Row {start + bad[0]} of the {name} is not finite; embed that image or text again.')


def _exact_scores(queries: Floats, gallery: Floats, query: Ints, item: Ints) -> npt.NDArray[np.float64]:
    """Inner products of pairs in float64, every pair summed in the same order: equal vectors give equal scores."""
    parts = [
        np.einsum('nd,nd->n', queries[query[i : i + _ROWS]], gallery[item[i : i + _ROWS]], dtype=np.float64)
        for i in range(0, len(query), _ROWS)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _count(queries: Floats, gallery: Floats, owner: Ints, threshold: npt.NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Items of the gallery that score higher than each threshold of its query, and exactly as high."""
    higher, equal = np.zeros(len(owner), dtype=np.int64), np.zeros(len(owner), dtype=np.int64)
    # the rounding error of a sum of D products grows like sqrt(D) (Higham, Accuracy and Stability, 2.6); four times it
    longest = _longest(queries) * _longest(gallery)
    error = 4 * queries.shape[1] ** 0.5 * 2**-24 * max(longest, 1e-30)
    query_rows, sizes = np.unique(owner, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    busy = np.argsort(-sizes, kind='stable')  # queries with equally many thresholds together
    scores = torch.empty(_BLOCK * _BLOCK)
    for part in (busy[i : i + _BLOCK] for i in range(0, len(busy), _BLOCK)):
        slots = starts[part][:, None] + np.arange(sizes[part].max())
        real = np.arange(sizes[part].max()) < sizes[part][:, None]
        limits = np.where(real, threshold[np.minimum(slots, len(threshold) - 1)], np.inf)
        low, high = ((limits + sign * error).astype(np.float32) for sign in (-1, 1))
        ours = torch.from_numpy(np.ascontiguousarray(queries[query_rows[part]], dtype=np.float32))
        for first in range(0, len(gallery), _BLOCK):
            items = torch.from_numpy(np.ascontiguousarray(gallery[first : first + _BLOCK], dtype=np.float32))
            block = scores[: len(ours) * len(items)].view(len(ours), len(items))
            torch.mm(ours, items.T, out=block)
            for column in range(limits.shape[1]):
                filled = np.flatnonzero(real[:, column])  # they come first: busy queries do
                if len(filled):
                    mine = slots[filled, column]
                    band = low[filled, column], high[filled, column]
                    surely, rows, columns = _above(block[: len(filled)], *band)
                    higher[mine] += surely
                    exact = _exact_scores(queries, gallery, query_rows[part][rows], first + columns)
                    np.add.at(higher, mine[rows], exact > limits[rows, column])
                    np.add.at(equal, mine[rows], exact == limits[rows, column])
    return higher, equal


def _longest(vectors: Floats) -> float:
    lengths = (np.linalg.norm(vectors[i : i + _ROWS], axis=1) for i in range(0, len(vectors), _ROWS))
    return max((float(part.max()) for part in lengths), default=0.0)


def _above(
    scores: torch.Tensor, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]
) -> tuple[Ints, Ints, Ints]:
    """How many scores of each row are above `high`, and the places (rows, columns) of those between `low` and `high`.

    Where few scores are above `low`, as they are below a good model's positives, they are looked at one by one; else
    they are counted in two passes.
    """
    larger = torch.gt(scores, torch.from_numpy(low)[:, None])
    found = np.count_nonzero(larger.numpy())
    if found <= larger.numel() // _FEW:
        rows, columns = np.divmod(np.flatnonzero(larger.numpy()), scores.shape[1])
        near = scores.numpy()[rows, columns] <= high[rows]
        return np.bincount(rows[~near], minlength=len(scores)), rows[near], columns[near]
    perhaps = _row_counts(larger)
    surely = _row_counts(torch.gt(scores, torch.from_numpy(high)[:, None]))
    some = np.flatnonzero(perhaps != surely)
    part = scores.numpy()[some]
    rows, columns = np.nonzero((part > low[some, None]) & (part <= high[some, None]))
    return surely, some[rows], columns


def _row_counts(larger: torch.Tensor) -> Ints:
    """How many of each row are true."""
    counts = larger.view(torch.uint8).sum(1, dtype=torch.int32)  # summing bools takes 30 times as long
    return counts.numpy().astype(np.int64)


def hits_at(ranks: Ranks, k: int) -> npt.NDArray[np.float64]:
    """Chance that a positive is among the k nearest, for each query that has positives, [Q'].

    0 or 1, except where items tie with the best positive at the cut: then, with t tied items and p tied positives and m
    places left, 1 - C(t, m) / C(t + p, m).
    """
    first = ranks.first
    above, tied = ranks.above[first], ranks.tied[first]
    together = np.bincount(np.searchsorted(ranks.level[first], ranks.level[_best(ranks)]), minlength=len(first))
    left = np.clip(k - above, 0, tied + together)
    miss = np.ones(len(first))
    for i in range(int(left.max(initial=0))):
        remain = np.maximum(tied - i, 0) / np.maximum(tied + together - i, 1)
        miss *= np.where(i < left, remain, 1.0)
    return 1 - miss


def _best(ranks: Ranks) -> npt.NDArray[np.bool_]:
    """Pairs that score as high as the best of their query."""
    level_of_first = np.repeat(ranks.level[ranks.first], np.diff(np.append(ranks.first, len(ranks.query))))
    return np.asarray(ranks.level == level_of_first)


def average_precision(ranks: Ranks, k: int | None = None) -> npt.NDArray[np.float64]:
    """Average precision of each query that has positives, [Q'].

    AP@k = sum over positives within the first k places of (positives up to it / its place), divided by min(k, number of
    positives); without k over the whole ranking. A tied item stands before a positive with chance one half, so places
    are 1 + positives before + items above + half of the tied.
    """
    first = ranks.first
    sizes = np.diff(np.append(first, len(ranks.query)))
    order = np.arange(len(ranks.query)) - np.repeat(first, sizes) + 1
    place = order + ranks.above + ranks.tied / 2
    gain = order / place
    if k is not None:
        gain = np.where(place <= k, gain, 0.0)
    most = sizes if k is None else np.minimum(sizes, k)
    return np.asarray(np.add.reduceat(gain, first) / most) if len(first) else np.zeros(0)
