"""Search among a million vectors: kinds of index beside exact FAISS and a plain product, asked the same in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from experiments.performance.retrieval.vectors import clustered, likeness
from grafalign.retrieval.ann import Ann, Kind
from grafalign.retrieval.exact import nearest

K = 10
TARGET = 0.99
_ROUNDS = 3


def measure(count: int, width: int, folder: Path, kinds: tuple[Kind, ...]) -> dict[str, Any]:
    """Build, tune and ask every kind.

    Queries are samples that share the kinds of the vectors and nothing else: one chooses the effort; the other measures
    recall and is asked in one batch for the rate; a hundred of it are asked one by one for the delay.
    """
    vectors = clustered(count, width)
    tuning, asked = clustered(1024, width, draw=1), clustered(2000, width, draw=2)
    rows: list[dict[str, Any]] = []
    _, truth = nearest(asked, vectors, K)
    gallery = torch.from_numpy(vectors)

    def product(queries: np.ndarray) -> np.ndarray:
        out = [torch.topk(torch.from_numpy(q) @ gallery.T, K)[1].numpy() for q in np.array_split(queries, 16)]
        return np.concatenate(out)

    flat = faiss.IndexFlatIP(width)
    began = time.perf_counter()
    flat.add(vectors)
    built = time.perf_counter() - began
    ways: list[tuple[str, Callable[[np.ndarray], np.ndarray], float, int, dict[str, Any]]] = [
        ('torch product and top k', product, 0.0, vectors.nbytes, {}),
        ('FAISS exact (IndexFlatIP)', lambda q: flat.search(q, K)[1], built, vectors.nbytes, {}),
    ]
    made: dict[str, Ann] = {}
    for kind in kinds:
        began = time.perf_counter()
        ann = Ann.build(vectors, tuning, kind, TARGET, count * 72 if kind == 'ivfpq' else None)
        seconds = time.perf_counter() - began
        path = folder / f'{kind}.faiss'
        ann.save(path)
        made[kind] = ann
        effort = ann.effort(K)
        told = {'visits': effort.visits, 'candidates': effort.candidates}
        ways.append((kind, _asker(ann, vectors), seconds, path.stat().st_size, told))
    rates: dict[str, list[float]] = {name: [] for name, *_ in ways}
    for _ in range(_ROUNDS):  # side by side, so that a busy moment of the machine hits all
        for name, ask, *_ in ways:
            began = time.perf_counter()
            ask(asked)
            rates[name].append(len(asked) / (time.perf_counter() - began))
    for name, ask, seconds, size, told in ways:
        found = ask(asked)
        recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)])
        began = time.perf_counter()
        for query in asked[:100]:
            ask(query[None])
        delay = (time.perf_counter() - began) / 100
        rows.append(
            {
                'way': name,
                'build_s': round(seconds, 1),
                'index_mb': round(size / 1e6, 1),
                'recall_at_10': round(float(recall), 4),
                'queries_per_s': round(float(np.median(rates[name])), 1),
                'one_query_ms': round(1000 * delay, 2),
                **told,
            }
        )
    return {'count': count, 'width': width, 'likeness': likeness(vectors[:200_000]), 'rows': rows}


def _asker(ann: Ann, vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda queries: ann.search(queries, vectors, K)[1]
