"""Metrics of ranked lists, maps and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from grafalign.benchmarks.statistics import Mean, MeanAp, MeanIou, confusion, estimates, ranking, resampling
from grafalign.retrieval import average_precision_at, nearest


def unit(rng: np.random.Generator, rows: int, depth: int = 16) -> np.ndarray:
    """Random unit vectors."""
    v = rng.normal(size=(rows, depth)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_average_precision_of_a_list_by_hand() -> None:
    """AP@4 of hits at ranks 1 and 3 with three relevant items is (1 + 2/3) / 3, and a class without items is NaN."""
    relevant = np.array([[True, False, True, False], [False, False, False, False]])
    value = average_precision_at(relevant, np.array([3, 0]))
    assert value[0] == pytest.approx((1 + 2 / 3) / 3) and np.isnan(value[1])


def test_map_agrees_with_a_search() -> None:
    """MAP from scores equals mAP from the ranking of a search."""
    rng = np.random.default_rng(2)
    items, classes, labels = unit(rng, 120), unit(rng, 4), rng.integers(0, 4, 120)
    _, rows = nearest(classes, items, 20)
    relevant = labels[rows] == np.arange(4)[:, None]
    expected = np.nanmean(average_precision_at(relevant, np.bincount(labels, minlength=4)))
    found = MeanAp(ranking(items @ classes.T), labels == np.arange(4)[:, None], 20)(np.ones((1, 120)))
    assert found[0] == pytest.approx(expected)


def test_iou_by_hand() -> None:
    """IoU counts hits over union, skips void pixels and classes that are not there."""
    truth = np.array([0, 0, 1, 1, 255])
    guess = np.array([0, 1, 1, 1, 2])
    counts = confusion(truth, guess, 3, 255)
    assert MeanIou(counts[None])(np.ones((1, 1)))[0] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_bootstrap_interval_holds_the_value_and_narrows() -> None:
    """The interval brackets the value, is that of the binomial within a tenth, and repeats with the seed."""
    rng = np.random.default_rng(3)
    right = rng.random(400) < 0.7
    score = {'right': Mean(right.astype(float), np.ones(400))}
    found = estimates(score, resampling(400, None))['right']
    assert found.low < found.value < found.high
    expected = 2 * 1.96 * np.sqrt(0.21 / 400)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)
    assert found == estimates(score, resampling(400, None))['right']
