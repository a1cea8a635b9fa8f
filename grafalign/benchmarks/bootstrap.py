"""95 % bootstrap intervals (Efron's percentile method) and the metrics they are taken of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from grafalign.retrieval.metrics import average_precision_at

Ints = npt.NDArray[np.int64]


class Estimate(TypedDict):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(units: int, metric: Callable[[Ints], float], seed: int = 0, draws: int = 1000) -> Estimate:
    """The metric of all units, and the 2.5 and 97.5 percentiles over resampled units.

    Args:
        units: number of units that are resampled (images, or chips of an image).
        metric: takes unit numbers (with repetitions) and returns the value.
        seed: seed of the draws.
        draws: number of resamples.
    """
    rng = np.random.default_rng(seed)
    values = [metric(rng.integers(0, units, units)) for _ in range(draws)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Estimate(value=float(metric(np.arange(units))), low=float(low), high=float(high))


def confusion(truth: Ints, guess: Ints, classes: int, void: int | None = None) -> Ints:
    """Counts [truth, guess]; truth equal to `void` is left out."""
    scored = np.ones(truth.shape, dtype=bool) if void is None else truth != void
    flat = truth[scored].astype(np.int64) * classes + guess[scored]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def mean_iou(counts: Ints) -> float:
    """Mean over the classes that occur in the truth of intersection over union, from a confusion matrix."""
    hit = np.diag(counts).astype(float)
    present = counts.sum(1) > 0
    union = counts.sum(0) + counts.sum(1) - hit
    return float((hit[present] / union[present]).mean())


def map_at(scores: npt.NDArray[np.floating], labels: Ints, k: int) -> float:
    """Mean over the classes of average precision at k, ranking items [N] by their scores [N, K] for each class."""
    top = np.argsort(-scores, axis=0, kind='stable')[:k].T
    classes = np.arange(scores.shape[1])
    relevant = labels[top] == classes[:, None]
    total = np.bincount(labels, minlength=len(classes))
    return float(np.nanmean(average_precision_at(relevant, total)))
