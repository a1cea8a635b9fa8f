"""Pseudo-labels of `experiments/recipe/rounds.py`: which patches keep one, and that pixels and labels stay together."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.recipe.rounds import Land, surest_labels
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles
from grafalign.training.self_labels import NONE


def land(labels: np.ndarray, side: int) -> Land:
    """Chips whose pixels do not matter."""
    none = np.zeros((len(labels), 1), np.float32)
    return Land(LabelledTiles(np.zeros((len(labels), 1, 1, 1)), none, none, labels, np.zeros((len(labels), 2))), side)


def test_surest() -> None:
    """Of each class the patches with the largest lead keep their label."""
    lead = np.array([0.3, 0.1, 0.2, 0.4, 0.05, 0.5])
    scores = np.zeros((1, 3, 1, 6))
    scores[0, [0, 0, 0, 0, 1, 1], 0, range(6)] = lead
    assert surest_labels(scores, 0.5).tolist() == [[[0, NONE, NONE, 0, NONE, 1]]]


def test_share() -> None:
    """A class keeps one patch at least, and all of its patches at a share of one."""
    scores = np.random.default_rng(0).normal(size=(4, 5, 6, 6))
    few = surest_labels(scores, 0.001)
    assert all((few == c).sum() == 1 for c in np.unique(scores.argmax(1)))
    np.testing.assert_array_equal(surest_labels(scores, 1.0), scores.argmax(1))


@pytest.mark.parametrize('side', [2, 4])
def test_truth(side: int) -> None:
    """The truth of a patch is its most frequent class."""
    rng = np.random.default_rng(side)
    labels = rng.integers(0, 3, (2, 16, 16))
    labels[0, :8, :8] = 255  # a quarter that nobody knows
    found = land(labels, side).truth(3)
    patch = 8 // side
    for chip in range(2):
        for quarter, (top, left) in enumerate(((0, 0), (0, 8), (8, 0), (8, 8))):
            for r in range(side):
                for c in range(side):
                    y, x = top + r * patch, left + c * patch
                    counts = np.bincount(labels[chip, y : y + patch, x : x + patch].ravel(), minlength=3)[:3]
                    expected = counts.argmax() if counts.sum() else NONE
                    assert found[quarter * 2 + chip, r, c] == expected


def test_order() -> None:
    """Pixels and labels of a chip are cut in the same order."""
    labels = np.arange(2 * 64).reshape(2, 8, 8)
    one = land(labels, 4)
    pixels = np.repeat(labels[:, None], 3, axis=1)
    np.testing.assert_array_equal(one.tiles(pixels)[:, 0], one.tiles(labels))
