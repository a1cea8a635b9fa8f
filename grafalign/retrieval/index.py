"""Nearest tiles to a text or a photo: a FAISS index behind two calls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import torch  # isort: skip  # noqa: F401  before faiss: two OpenMP runtimes loaded the other way round crash on macOS
import faiss

from grafalign.errors import GrafalignError

FAISS_VERSION: str = faiss.__version__
"""Asked of the module, as its distributions have several names."""


class TileIndex:
    """Exact inner-product search over unit vectors.

    Args:
        embeddings: unit vectors [T, D].
    """

    def __init__(self, embeddings: npt.NDArray[np.floating]) -> None:
        vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or not len(vectors):
            raise GrafalignError('There are no embeddings to index.')
        if not np.isfinite(vectors).all():
            raise GrafalignError('Some embeddings are not finite; embed the tiles again.')
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: npt.NDArray[np.floating], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores and row numbers [Q, k] of the nearest rows, best first; k is at most the number of rows."""
        vectors = np.ascontiguousarray(queries, dtype=np.float32)
        if vectors.shape[1] != self._index.d:
            raise GrafalignError(
                f'The queries have {vectors.shape[1]} dimensions and the index {self._index.d}: '
                'they come from different models.'
            )
        scores, rows = self._index.search(vectors, min(k, len(self)))
        return scores, rows
