"""Index and metrics against naive references."""

from __future__ import annotations

import numpy as np
import pytest

from grafalign.benchmarks.bootstrap import bootstrap, confusion, map_at, mean_iou
from grafalign.errors import GrafalignError
from grafalign.retrieval import TileIndex, average_precision_at, recall_at


def unit(rng: np.random.Generator, rows: int, depth: int = 16) -> np.ndarray:
    """Random unit vectors."""
    v = rng.normal(size=(rows, depth)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_search_is_the_sorted_product() -> None:
    """The index returns the best rows by inner product, in order."""
    rng = np.random.default_rng(0)
    items, queries = unit(rng, 200), unit(rng, 7)
    scores, rows = TileIndex(items).search(queries, 10)
    expected = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    assert (rows == expected).all()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ items.T, expected, 1), rtol=1e-5)


def test_an_index_refuses_queries_of_another_model() -> None:
    """A query of other width is an error that says so."""
    with pytest.raises(GrafalignError, match='different models'):
        TileIndex(unit(np.random.default_rng(0), 5)).search(np.ones((1, 3), dtype=np.float32), 1)


def test_recall_is_the_naive_recall_whatever_the_chunk() -> None:
    """Recall with several positives equals a loop over queries, for uneven chunks too."""
    rng = np.random.default_rng(1)
    queries, items = unit(rng, 37), unit(rng, 91)
    owner = np.concatenate([np.arange(37), rng.integers(0, 37, 60)])
    item = rng.integers(0, 91, len(owner))
    keep = owner != 5  # a query without positives is not asked
    owner, item = owner[keep], item[keep]
    hits = []
    for q in range(37):
        mine = set(item[owner == q].tolist())
        if mine:
            best = np.argsort(-(items @ queries[q]))
            hits.append([bool(mine & set(best[:k].tolist())) for k in (1, 5, 10)])
    expected = np.mean(hits, axis=0)
    for chunk in (1, 7, 1000):
        found = recall_at(queries, items, owner, item, chunk=chunk)
        np.testing.assert_allclose([found[1], found[5], found[10]], expected)


def test_average_precision_by_hand() -> None:
    """AP@4 of hits at ranks 1 and 3 with three relevant items is (1 + 2/3) / 3, and a class without items is NaN."""
    relevant = np.array([[True, False, True, False], [False, False, False, False]])
    value = average_precision_at(relevant, np.array([3, 0]))
    assert value[0] == pytest.approx((1 + 2 / 3) / 3) and np.isnan(value[1])


def test_map_agrees_with_the_index() -> None:
    """MAP from scores equals mAP from the index's ranking."""
    rng = np.random.default_rng(2)
    items, classes, labels = unit(rng, 120), unit(rng, 4), rng.integers(0, 4, 120)
    _, rows = TileIndex(items).search(classes, 20)
    relevant = labels[rows] == np.arange(4)[:, None]
    expected = np.nanmean(average_precision_at(relevant, np.bincount(labels, minlength=4)))
    assert map_at(items @ classes.T, labels, 20) == pytest.approx(expected)


def test_iou_by_hand() -> None:
    """IoU counts hits over union, skips void pixels and classes that are not there."""
    truth = np.array([0, 0, 1, 1, 255])
    guess = np.array([0, 1, 1, 1, 2])
    counts = confusion(truth, guess, 3, 255)
    assert mean_iou(counts) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_bootstrap_interval_holds_the_value_and_narrows() -> None:
    """The interval brackets the value, is that of the binomial within a tenth, and repeats with the seed."""
    rng = np.random.default_rng(3)
    right = rng.random(400) < 0.7
    found = bootstrap(400, lambda i: float(right[i].mean()))
    assert found['low'] < found['value'] < found['high']
    expected = 2 * 1.96 * np.sqrt(0.21 / 400)
    assert found['high'] - found['low'] == pytest.approx(expected, rel=0.1)
    assert found == bootstrap(400, lambda i: float(right[i].mean()))
