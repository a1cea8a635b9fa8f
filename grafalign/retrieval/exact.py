"""Exact nearest vectors by inner product, a piece of the gallery at a time: the truth that an index is held to.

FAISS multiplies and selects; on an NVIDIA GPU where GPU FAISS is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import torch  # isort: skip  # noqa: F401  before faiss: two OpenMP runtimes loaded the other way round crash on macOS
import faiss

from grafalign.errors import InputError

FAISS_VERSION: str = faiss.__version__
"""Asked of the module, as its distributions have several names."""
Floats = npt.NDArray[np.floating]
_PART_BYTES = 134_217_728
"""Rows of the gallery in memory at a time: 65,536 at 512 dimensions."""
_QUERIES = 4096


def gpus() -> int:
    """GPUs that FAISS can use: none with its CPU build."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, 'StandardGpuResources') else 0


def check_vectors(vectors: Floats, what: str = 'The embeddings') -> None:
    """Check that vectors are finite and of unit length, as every index takes them.

    Raises:
        GrafalignError: there are none, a row is not finite, or a row has not unit length.
    """
    if vectors.ndim != 2 or not len(vectors):
        raise InputError(f'{what} are no table of vectors, or empty; there must be one row for each item.')
    rows = _part_rows(vectors)
    for start in range(0, len(vectors), rows):
        part = np.asarray(vectors[start : start + rows], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(part).all(1))
        if len(bad):
            raise InputError(f'{what} are not finite in row {start + bad[0]}; embed that item again.')
        length = np.linalg.norm(part, axis=1)
        off = np.flatnonzero(np.abs(length - 1) > 0.01)
        if len(off):
            raise InputError(
                f'{what} are not normalised (row {start + off[0]} has length {length[off[0]]:.3g}); '
                'divide each row by its length.'
            )


def check_width(queries: Floats, width: int) -> None:
    """Refuse queries of another width than the index.

    Raises:
        GrafalignError: they come from another model.
    """
    if queries.ndim != 2 or queries.shape[1] != width:
        raise InputError(
            f'The queries have {queries.shape[-1]} dimensions and the index {width}: they come from different models; '
            'use the model that made the index.'
        )


def nearest(
    queries: Floats, vectors: Floats, k: int, rows: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Scores and row numbers [Q, k] of the nearest rows, best first.

    Args:
        queries: [Q, D].
        vectors: [N, D], also memory-mapped.
        k: how many; no more than there are rows to choose from are returned.
        rows: look only at these rows of `vectors`.

    Raises:
        GrafalignError: widths differ, or k is less than one.
    """
    check_width(queries, vectors.shape[1])
    if k < 1:
        raise InputError(f'{k} nearest items make no sense; ask for at least one.')
    total = len(vectors) if rows is None else len(rows)
    k = min(k, total)
    prepared = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.full((len(prepared), k), -np.inf, dtype=np.float32)
    found = np.full((len(prepared), k), -1, dtype=np.int64)
    step = _part_rows(vectors)
    for start in range(0, total, step):
        stop = min(start + step, total)
        part = np.ascontiguousarray(vectors[start:stop] if rows is None else vectors[rows[start:stop]], np.float32)
        number = np.arange(start, stop) if rows is None else rows[start:stop]
        for first in range(0, len(prepared), _QUERIES):
            some = slice(first, first + _QUERIES)
            new_scores, local = _knn(prepared[some], part, min(k, len(part)))
            together = np.concatenate([scores[some], new_scores], axis=1)
            places = np.concatenate([found[some], number[local]], axis=1)
            best = np.argsort(-together, axis=1, kind='stable')[:, :k]
            scores[some] = np.take_along_axis(together, best, 1)
            found[some] = np.take_along_axis(places, best, 1)
        del part  # before the next one is gathered
    return scores, found


def _part_rows(vectors: Floats) -> int:
    return max(1, _PART_BYTES // (4 * vectors.shape[1]))


def _knn(queries: Floats, part: Floats, k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    if gpus() and k <= 2048:  # the most that FAISS selects on a GPU
        global _resources
        _resources = _resources or faiss.StandardGpuResources()
        scores, rows = faiss.knn_gpu(_resources, queries, part, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        scores, rows = faiss.knn(queries, part, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


_resources: Any = None


def score_again(
    queries: Floats, vectors: Floats, rows: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The k best of candidates [Q, C] (-1 for none) by their true scores."""
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    rows = np.where(rows < len(vectors), rows, -1)  # a damaged index may name anything
    for i, candidates in enumerate(rows):
        real = candidates >= 0
        scores[i, real] = vectors[candidates[real]] @ queries[i]
    best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
