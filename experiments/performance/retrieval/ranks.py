"""Ranks of several positives: time beside the bare product, memory above the embeddings, and the usual one-hot code.

Each measurement runs in a process of its own, so that its peak memory is its own. The bare product multiplies the same
blocks and throws the scores away.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.performance.retrieval.vectors import clustered
from grafalign.retrieval import average_precision, hits_at, positive_ranks
from grafalign.retrieval.ranks import _BLOCK

POSITIVES = 5
WIDTH = 512
ONE_HOT_BATCH = 64


def embeddings(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Queries and gallery [count, 512], and pairs: a query's own item, seen through noise, and four random ones.

    The noise is such that a query's own item is its nearest about every second time.
    """
    gallery = clustered(count, WIDTH, seed=3)
    rng = np.random.default_rng(4)
    queries = gallery + rng.normal(size=gallery.shape).astype(np.float32) * np.float32(3.0 / WIDTH**0.5)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    own = np.arange(count)
    query = np.repeat(own, POSITIVES)
    item = np.stack([own, *(rng.integers(0, count, count) for _ in range(POSITIVES - 1))], axis=1).ravel()
    return queries.astype(np.float32), gallery, query, item


def bare(queries: np.ndarray, gallery: np.ndarray, *_: Any) -> dict[str, float]:
    """The product alone."""
    a, b = torch.from_numpy(queries), torch.from_numpy(gallery)
    block = torch.empty(_BLOCK * _BLOCK)
    for i in range(0, len(a), _BLOCK):
        for j in range(0, len(b), _BLOCK):
            x, y = a[i : i + _BLOCK], b[j : j + _BLOCK]
            torch.mm(x, y.T, out=block[: len(x) * len(y)].view(len(x), len(y)))
    return {}


def best_ranks(queries: np.ndarray, gallery: np.ndarray, query: np.ndarray, item: np.ndarray) -> dict[str, float]:
    """Recall: the rank of the best positive."""
    ranks = positive_ranks(queries, gallery, query, item, best_only=True)
    return {f'r@{k}': float(hits_at(ranks, k).mean()) for k in (1, 5, 10)}


def all_ranks(queries: np.ndarray, gallery: np.ndarray, query: np.ndarray, item: np.ndarray) -> dict[str, float]:
    """Recall and mean average precision: ranks of all positives."""
    ranks = positive_ranks(queries, gallery, query, item)
    return {f'r@{k}': float(hits_at(ranks, k).mean()) for k in (1, 5, 10)} | {
        'map': float(average_precision(ranks).mean())
    }


def one_hot(queries: np.ndarray, gallery: np.ndarray, query: np.ndarray, item: np.ndarray) -> dict[str, float]:
    """As benchmark code commonly does it: the whole score matrix, a boolean one beside it, one-hot top k by batches."""
    scores = torch.from_numpy(queries) @ torch.from_numpy(gallery).T
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[torch.from_numpy(query), torch.from_numpy(item)] = True
    out = {}
    for k in (1, 5, 10):
        hits = []
        for start in range(0, len(scores), ONE_HOT_BATCH):
            part, truth = scores[start : start + ONE_HOT_BATCH], positive[start : start + ONE_HOT_BATCH]
            top = torch.nn.functional.one_hot(torch.topk(part, k, dim=1)[1], num_classes=scores.shape[1])
            hits.append((top * truth[:, None]).sum((1, 2)) > 0)
        out[f'r@{k}'] = float(torch.cat(hits).float().mean())
    return out


WAYS: dict[str, Callable[..., dict[str, float]]] = {
    'bare product': bare,
    'recall': best_ranks,
    'recall and mAP': all_ranks,
    'one-hot recall': one_hot,
}


def measure(way: str, count: int) -> dict[str, Any]:
    """One way in this process: seconds, and peak memory above what stood before it."""
    material = embeddings(count)
    small = embeddings(512)
    WAYS[way](*small)  # threads and libraries are there
    Path('/proc/self/clear_refs').write_text('5')  # peak memory from here on
    before = _status('VmRSS')
    began = time.perf_counter()
    values = WAYS[way](*material)
    seconds = time.perf_counter() - began
    return {
        'way': way,
        'count': count,
        'seconds': round(seconds, 2),
        'gb_above': round((_status('VmHWM') - before) / 1e6, 3),
        'embeddings_gb': round((material[0].nbytes + material[1].nbytes) / 1e9, 3),
        'values': {k: round(v, 4) for k, v in values.items()},
        'max_rss_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def _status(name: str) -> int:
    """Kilobytes of a line of /proc/self/status."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def in_own_process(way: str, count: int) -> dict[str, Any]:
    """`measure` in a fresh process."""
    code = [sys.executable, '-W', 'ignore', '-m', 'experiments.performance.retrieval.ranks', way, str(count)]
    out = subprocess.run(code, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Measure one way.')
    parser.add_argument('way', choices=WAYS)
    parser.add_argument('count', type=int)
    given = parser.parse_args()
    print(json.dumps(measure(given.way, given.count)))
