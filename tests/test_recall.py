"""An approximate index finds the share that it promises, for any number of neighbours, also after removals."""

from __future__ import annotations

import itertools
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from grafalign.retrieval.ann import Ann, Kind
from grafalign.retrieval.exact import nearest
from grafalign.search.catalog import Catalog
from grafalign.search.marker import IndexModel, IndexSource

NUMBERS = (1, 2, 5, 7, 10, 11, 15, 20, 30, 50, 75, 100)


def clustered(count: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors in clusters, as CLIP's are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, width))
    found = centres[rng.integers(0, 40, count)] + 0.6 * rng.normal(size=(count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, truth, strict=True)]))


@pytest.mark.parametrize('kind', ['ivf', pytest.param('ivfpq', marks=pytest.mark.slow), 'hnsw'])
def test_recall_holds_for_every_number_of_neighbours(kind: Kind) -> None:
    """From 1 to 100, on queries that tuned nothing; a percent is left to chance."""
    vectors, queries = clustered(2500, 64, 1), clustered(300, 64, 2)
    ann = Ann.build(vectors, clustered(420, 64, 3), kind)
    for k in NUMBERS:
        _, truth = nearest(queries, vectors, k)
        _, rows = ann.search(queries, vectors, k)
        assert recall(rows, truth) >= 0.98, k
    efforts = [ann.parameters_for(k) for k in range(1, 101)]
    totals = [e.candidates * e.k for e in efforts]
    assert all(b >= a - a / 50 - 100 for a, b in itertools.pairwise(totals))  # no cliff between two numbers
    assert all(b.visits >= a.visits for a, b in itertools.pairwise(efforts))


@pytest.mark.parametrize('kind', ['ivf', pytest.param('ivfpq', marks=pytest.mark.slow), 'hnsw'])
def test_recall_holds_after_removals(tmp_path: Path, kind: Kind) -> None:
    """A tenth of the items gone, one cluster among them."""
    vectors, queries = clustered(2500, 64, 1), clustered(200, 64, 2)
    catalog = Catalog.create(tmp_path / 'index', 64, IndexModel(digest='a', name='m', spec='s'), 0.99)
    table = {'item_id': [str(i) for i in range(2500)], 'source': 's', 'signature': ''}
    items = gpd.GeoDataFrame(table, geometry=[None] * 2500, crs='EPSG:4326').assign(datetime=pd.NaT)
    catalog.append(items, vectors, source=IndexSource(bands=(), value_range=(0, 1)))
    catalog.optimise(clustered(420, 64, 3), kind)
    near = (vectors @ vectors[0]).argsort()[-200:]
    gone = np.union1d(near, np.random.default_rng(4).choice(2500, 200, replace=False))
    catalog.remove(gone)
    left = np.setdiff1d(np.arange(2500), gone)
    for k in (1, 10, 11, 20, 50):
        _, truth = nearest(queries, vectors, k, left)
        _, rows = catalog.search(queries, k)
        assert not np.isin(rows, gone).any() and recall(rows, truth) >= 0.98, k
