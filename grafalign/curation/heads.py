"""From features of images to the probability that one is remote sensing: heads fitted on labelled kinds of images.

A kind is a folder of images of one sort: AID, EuroSAT; photos, charts, screenshots. Every kind of a side weighs as much
as every other, whatever its size, and all figures are per kind: a rate over all negatives hides which of them pass.
All scores that rates are read off are out of fold: the head that gave them had not seen that image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.stats import beta

from grafalign.errors import InputError
from grafalign.photos.ranks import keyed_hashes

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FOLDS = 5
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Labelled:
    """N labelled images."""

    features: npt.NDArray[np.float32]
    """[N, D]"""
    kind: npt.NDArray[np.object_]
    """Name of each image's kind, [N]."""
    positive: Bools
    """[N]"""
    ids: Sequence[str]
    """What decides the fold of an image: its digest, so that copies are in one fold."""

    def kinds(self, positive: bool) -> list[str]:
        """Kinds of a side, in the order of their first image."""
        return list(dict.fromkeys(self.kind[self.positive == positive].tolist()))


@dataclass(frozen=True)
class Head:
    """A linear head with its calibration."""

    weight: Floats
    """Of a raw feature, [D]."""
    bias: float
    slope: float = 1.0
    """Platt's scaling (1999) of its scores."""
    shift: float = 0.0

    def logits(self, features: npt.NDArray[np.generic]) -> Floats:
        """Calibrated log odds at a prior of one half, [N], of features [N, D]."""
        return self.slope * (features.astype(np.float64) @ self.weight + self.bias) + self.shift


@dataclass(frozen=True)
class Fitted:
    """A head with the scores of the images it was fitted on, each by a head that had not seen it."""

    head: Head
    logits: Floats
    """Out of fold and calibrated, [N]."""
    ridge: float


def fit_head(data: Labelled) -> Fitted:
    """Fit a logistic head, its ridge chosen and its scores calibrated out of fold.

    Raises:
        GrafalignError: a side has no kind, or a kind has fewer images than there are folds.
    """
    _check(data)
    weight, fold = balanced(data), folds(data)
    scores = {ridge: np.empty(len(data.kind)) for ridge in _RIDGES}
    for ridge, logits in scores.items():
        for number in range(FOLDS):
            out = fold == number
            logits[out] = _scores(_logistic(data.features[~out], data.positive[~out], weight[~out], ridge), data, out)
    ridge = min(scores, key=lambda r: _log_loss(scores[r], data.positive, weight))
    logits = scores[ridge]
    slope, shift = platt(logits, data.positive, weight)
    raw, bias = _logistic(data.features, data.positive, weight, ridge)
    return Fitted(Head(raw, bias, slope, shift), slope * logits + shift, ridge)


@dataclass(frozen=True)
class Unseen:
    """What becomes of a kind that a filter was not fitted on."""

    rest: Labelled
    """The other kinds."""
    fitted: Fitted
    """On those."""
    logits: Floats
    """Scores of the images of the kind."""

    def accepted(self, rate: float) -> float:
        """Share of the kind that is accepted, at the threshold that the other kinds give for a rate."""
        return float((self.logits >= threshold_at(self.fitted.logits, self.rest, rate)).mean())


def unseen(data: Labelled) -> dict[str, Unseen]:
    """For each kind a fit of all others; a kind that is the only one of its side has none."""
    found = {}
    for positive in (True, False):
        kinds = data.kinds(positive)
        for kind in kinds if len(kinds) > 1 else ():
            out = data.kind == kind
            ids = [name for name, gone in zip(data.ids, out, strict=True) if not gone]
            rest = Labelled(data.features[~out], data.kind[~out], data.positive[~out], ids)
            fitted = fit_head(rest)
            found[kind] = Unseen(rest, fitted, fitted.head.logits(data.features[out]))
    return found


def platt(logits: Floats, positive: Bools, weight: Floats) -> tuple[float, float]:
    """Slope and shift that make scores log odds at a prior of one half (Platt 1999), each side weighing one half."""

    def loss(values: Floats) -> float:
        return _log_loss(values[0] * logits + values[1], positive, weight)

    found = minimize(loss, np.array([1.0, 0.0]), method='Nelder-Mead').x
    return float(max(found[0], 1e-6)), float(found[1])


def threshold_at(logits: Floats, data: Labelled, rate: float) -> float:
    """The smallest threshold at which no kind of negatives has a larger share of false positives than `rate`."""
    lowest = -np.inf
    for kind in data.kinds(False):
        mine = np.sort(logits[data.kind == kind])[::-1]
        allowed = int(np.floor(rate * len(mine)))
        lowest = max(lowest, float(mine[allowed]) if allowed < len(mine) else -np.inf)
    return float(np.nextafter(lowest, np.inf))


def upper_bound(hits: int, count: int) -> float:
    """Clopper and Pearson's one-sided upper bound of a share at 95 % (1934).

    Example:
        >>> round(upper_bound(0, 300), 4)  # the rule of three
        0.0099
    """
    return 1.0 if hits >= count else float(beta.ppf(CONFIDENCE, hits + 1, count - hits))


def precision_at(prior: float, recall: float, rate: float) -> float:
    """The share of what is accepted that is right, where `prior` of all that comes is."""
    accepted = prior * recall + (1 - prior) * rate
    return prior * recall / accepted if accepted > 0 else 1.0


def balanced(data: Labelled) -> Floats:
    """Weights that give both sides one half and every kind of a side the same, [N]."""
    weight = np.zeros(len(data.kind))
    for positive in (True, False):
        kinds = data.kinds(positive)
        for kind in kinds:
            mine = data.kind == kind
            weight[mine] = 0.5 / len(kinds) / mine.sum()
    return weight


def folds(data: Labelled) -> npt.NDArray[np.int64]:
    """Fold of each image: those of a kind are spread evenly, copies of one image stay together, [N]."""
    rank = keyed_hashes(list(data.ids), 0)
    found = np.empty(len(data.kind), dtype=np.int64)
    for kind in dict.fromkeys(data.kind.tolist()):
        mine = data.kind == kind
        _, order = np.unique(rank[mine], return_inverse=True)
        found[mine] = order % FOLDS
    return found


def _check(data: Labelled) -> None:
    for positive, name in ((True, 'positive'), (False, 'negative')):
        if not data.kinds(positive):
            raise InputError(f'There is no kind of {name} images; a filter is fitted on both, so name folders of both.')
    counts: Mapping[str, int] = {k: int((data.kind == k).sum()) for k in dict.fromkeys(data.kind.tolist())}
    few = next((k for k, n in counts.items() if n < 2 * FOLDS), None)
    if few is not None:
        raise InputError(
            f'The kind {few} has {counts[few]} readable images; give at least {2 * FOLDS}, or leave it out: a rate of '
            'so few says nothing.'
        )


def _logistic(features: npt.NDArray[np.float32], positive: Bools, weight: Floats, ridge: float) -> tuple[Floats, float]:
    """Weights [D] and bias of a logistic regression on standardised features, for raw ones."""
    x = features.astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / scale
    y, w = np.where(positive, 1.0, -1.0), weight / weight.sum()

    def loss(values: Floats) -> tuple[float, Floats]:
        margin = y * (x @ values[:-1] + values[-1])
        pull = -w * y / (1 + np.exp(np.clip(margin, -500, 500)))
        gradient = np.append(x.T @ pull + ridge * values[:-1], pull.sum())
        return float((w * np.logaddexp(0, -margin)).sum() + ridge / 2 * (values[:-1] ** 2).sum()), gradient

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method='L-BFGS-B').x
    raw = found[:-1] / scale
    return raw, float(found[-1] - raw @ mean)


def _scores(model: tuple[Floats, float], data: Labelled, rows: Bools) -> Floats:
    found: Floats = data.features[rows].astype(np.float64) @ model[0] + model[1]
    return found


def _log_loss(logits: Floats, positive: Bools, weight: Floats) -> float:
    return float((weight * np.logaddexp(0, np.where(positive, -logits, logits))).sum() / weight.sum())
