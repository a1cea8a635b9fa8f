"""Approximate neighbours: FAISS finds candidates in a small copy of the vectors, the vectors themselves decide.

Three kinds, all made by FAISS's factory:

    ivf     cells of k-means, 8 bits a number: D bytes a vector. Quick to make and to add to; the usual choice
    ivfpq   the same cells, product-quantised: 32 to 128 bytes a vector, where memory is short
    hnsw    a graph of neighbours over 8-bit vectors: D + 280 bytes a vector, slow to make

`Ann.build` measures recall against exact search and raises the search parameters until the target is met with a margin
on two thirds of its queries; the recall of the last third, which tuned nothing, is kept and reported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import torch  # isort: skip  # noqa: F401  before faiss: two OpenMP runtimes loaded the other way round crash on macOS
import faiss

from grafalign import console
from grafalign.errors import DamagedError
from grafalign.retrieval.exact import Floats, nearest, score_again

Kind = Literal['exact', 'ivf', 'ivfpq', 'hnsw']
EXACT_ROWS = 50_000
"""Up to so many vectors exact search answers at once: 100 MB at 512 dimensions."""
_TUNED_AT = (1, 5, 10, 20, 50, 100)
"""Numbers of neighbours that search parameters are tuned for."""
_CHUNK = 65_536
_TRAIN_PER_CELL = 40
"""FAISS wants 39 to 256 training vectors a cell; more takes longer and gains little."""
_CODES = (128, 64, 32)
_GAIN = 1e-4
_MISSES = 0.75
"""Share of the misses that the target allows which tuning uses up."""


@dataclass(frozen=True)
class SearchParameters:
    """How much of an approximate index is looked at, for one number of neighbours."""

    k: int
    visits: int
    """Cells that are opened (ivf, ivfpq), or length of the list of open nodes (hnsw)."""
    candidates: int
    """Candidates a neighbour that are scored again."""
    recall: float
    """Share of the true k nearest that were found, on queries that tuned nothing."""


@dataclass
class Ann:
    """An approximate index over the first `rows` vectors of a table."""

    kind: Kind
    index: Any
    target: float
    search_parameters: list[SearchParameters] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Vectors in it."""
        return int(self.index.ntotal)

    @classmethod
    def build(
        cls, vectors: Floats, queries: Floats, kind: Kind, target: float = 0.99, most_bytes: int | None = None
    ) -> Ann:
        """Train, fill and tune an index.

        Args:
            vectors: unit vectors [N, D], also memory-mapped.
            queries: what will be asked, [Q, D]; a third of them each proposes, agrees and measures.
            kind: not `exact`.
            target: recall to reach.
            most_bytes: memory that `ivfpq` may take.
        """
        count, width = vectors.shape
        cells = _cells(count)
        if kind == 'hnsw':
            key = 'HNSW32,SQ8'
        elif kind == 'ivf':
            key = f'IVF{cells},SQ8'
        else:
            key = f'IVF{cells},PQ{_code_bytes(count, width, most_bytes)}'
        index = faiss.index_factory(width, key, faiss.METRIC_INNER_PRODUCT)
        if kind != 'hnsw':
            index.cp.niter = 10
        rng = np.random.default_rng(0)
        sample = np.sort(rng.choice(count, min(count, cells * _TRAIN_PER_CELL), replace=False))
        console.log(f'training {key} on {len(sample):,} of {count:,} vectors')
        index.train(np.ascontiguousarray(vectors[sample], dtype=np.float32))
        made = cls(kind, index, target)
        made.add(vectors)
        made.tune(vectors, queries)
        return made

    def add(self, vectors: Floats) -> None:
        """Append vectors [N, D]; they take the row numbers that follow."""
        with console.progress('indexing', len(vectors)) as bar:
            for start in range(0, len(vectors), _CHUNK):
                part = np.ascontiguousarray(vectors[start : start + _CHUNK], dtype=np.float32)
                self.index.add(part)
                bar.advance(len(part))

    def tune(self, vectors: Floats, queries: Floats) -> None:
        """Find the least search parameters that reach the target for several numbers of neighbours, and their recall.

        A third of the queries proposes them, another third must agree, the last one tunes nothing and measures.
        Visits and candidates never fall from one number of neighbours to the next, so that every number between two is
        served by the parameters of the larger one.
        """
        self.search_parameters = []
        recall = 1 - (1 - self.target) * _MISSES  # so that queries that tuned nothing meet the target too
        mixed = queries[np.random.default_rng(1).permutation(len(queries))]
        parts = np.array_split(np.arange(len(mixed)), 3) if len(mixed) >= 3 else [np.arange(len(mixed))] * 3
        most = max(k for i, k in enumerate(_TUNED_AT) if i < 3 or k <= self.rows // 10)
        _, truth = nearest(mixed, vectors[: self.rows], most)
        visits, candidates = 0, 0
        for k in (k for k in _TUNED_AT if k <= most):
            best = self._tuned(mixed, vectors, truth[:, :k], parts, k, recall, (visits, candidates))
            visits, candidates = best.visits, best.candidates * k
            measured = self._recall(mixed[parts[2]], vectors, truth[parts[2], :k], best)
            self.search_parameters.append(SearchParameters(k, best.visits, best.candidates, round(measured, 4)))

    def _tuned(
        self,
        queries: Floats,
        vectors: Floats,
        truth: npt.NDArray[np.int64],
        parts: Sequence[npt.NDArray[np.int64]],
        k: int,
        recall: float,
        least: tuple[int, int],
    ) -> SearchParameters:
        """The quickest search parameters for k neighbours that two parts of the queries agree on; else the greatest."""
        fastest: tuple[float, SearchParameters] | None = None
        last: SearchParameters | None = None
        for given in (4, 16, 64) if self.kind == 'ivfpq' else (2,):
            candidates = max(given, -(-least[1] // k))
            if fastest is not None and candidates * k > self.rows // 4:
                break  # so many would be scored again that exact search is as quick
            best_so_far, stale = 0.0, 0
            for visits in (v for v in self._visits() if v >= least[0]):
                trial = SearchParameters(k, visits, candidates, 0.0)
                began = time.perf_counter()
                proposed = self._recall(queries[parts[0]], vectors, truth[parts[0]], trial)
                seconds = time.perf_counter() - began
                stale = stale + 1 if proposed <= best_so_far + _GAIN else 0
                best_so_far = max(best_so_far, proposed)
                if proposed < recall:
                    if stale == 3:
                        break  # more cells bring nothing: the candidates are too few
                    continue
                last = trial
                if self._recall(queries[parts[1]], vectors, truth[parts[1]], trial) >= recall:
                    if fastest is None or seconds < fastest[0]:
                        fastest = seconds, trial
                    break
        if fastest is not None:
            return fastest[1]
        return last or SearchParameters(k, self._visits()[-1], max(64, -(-least[1] // k)), 0.0)

    def _recall(
        self, queries: Floats, vectors: Floats, truth: npt.NDArray[np.int64], parameters: SearchParameters
    ) -> float:
        _, rows = self._search(queries, vectors, parameters, parameters.k)
        k = truth.shape[1]
        found = [np.isin(b, a[:k]).sum() for a, b in zip(rows, truth, strict=True)]
        return float(np.sum(found)) / (k * len(truth))

    def _visits(self) -> Sequence[int]:
        most = 4096 if self.kind == 'hnsw' else int(self.index.nlist)
        least = 16 if self.kind == 'hnsw' else 1
        steps = int(np.ceil(2 * np.log2(most / least))) + 1
        return sorted({min(most, round(least * 2 ** (i / 2))) for i in range(steps)})

    def parameters_for(self, k: int) -> SearchParameters:
        """How hard to look for k neighbours: as for the next larger number that was tuned, beyond that in proportion.

        >>> # tuned for 10 with 16 candidates each and for 100 with 4: 11 neighbours take the 400 candidates of 100
        """
        at = next((e for e in self.search_parameters if k <= e.k), self.search_parameters[-1])
        share = max(1.0, k / at.k)
        visits = min(int(np.ceil(at.visits * share)), self._visits()[-1])
        return SearchParameters(k, visits, int(np.ceil(at.candidates * max(1.0, at.k / k))), at.recall)

    def search(self, queries: Floats, vectors: Floats, k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores and rows [Q, k] of the nearest vectors; -1 where fewer were found.

        Args:
            queries: [Q, D].
            vectors: the vectors themselves, [N, D].
            k: how many.
        """
        return self._search(queries, vectors, self.parameters_for(k), k)

    def _search(
        self, queries: Floats, vectors: Floats, parameters: SearchParameters, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        candidates = min(self.rows, parameters.candidates * k)
        if self.kind == 'hnsw':
            parameters = faiss.SearchParametersHNSW(efSearch=max(parameters.visits, candidates))
        else:
            parameters = faiss.SearchParametersIVF(nprobe=parameters.visits)
        prepared = np.ascontiguousarray(queries, dtype=np.float32)
        _, rows = self.index.search(prepared, candidates, params=parameters)
        return score_again(prepared, vectors, rows, k)

    def save(self, path: Path) -> None:
        """Write FAISS's own file."""
        faiss.write_index(self.index, str(path))

    @classmethod
    def load(
        cls, path: Path, kind: Kind, target: float, search_parameters: list[SearchParameters], *, mapped: bool = True
    ) -> Ann:
        """Open what `save` wrote, memory-mapped: pages are read when a search needs them.

        Raises:
            GrafalignError: the file is missing or damaged.
        """
        flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
        try:
            index = faiss.read_index(str(path), flags)
        except (RuntimeError, OSError, MemoryError) as error:
            reason = ' '.join(str(error).split())[-200:]
            raise DamagedError(f'{path} is missing or damaged ({reason}); make the index again.') from None
        return cls(kind, index, target, search_parameters)


FEWEST_ROWS = 1000
"""With fewer there is nothing to approximate: FAISS could not learn its codes."""


def choose(count: int, width: int, most_bytes: int) -> Kind:
    """The kind for so many vectors in so much memory: exact while that is quick, else ivf, ivfpq where it must be."""
    if count <= EXACT_ROWS:
        return 'exact'
    return 'ivf' if count * (width + 8) <= most_bytes else 'ivfpq'


def _cells(count: int) -> int:
    """Cells of k-means: 4 sqrt(N), FAISS's own advice for a million vectors."""
    return int(max(1, min(4 * count**0.5, count / _TRAIN_PER_CELL, 65_536)))


def _code_bytes(count: int, width: int, most_bytes: int | None) -> int:
    fitting = [m for m in _CODES if width % m == 0] or [1]
    small_enough = [m for m in fitting if most_bytes is None or count * (m + 8) <= most_bytes]
    return (small_enough or fitting[-1:])[0]
