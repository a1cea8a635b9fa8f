"""Values that can be computed anew for any weights of the images: what intervals and paired tests resample.

A statistic holds what it needs of every image, never the images themselves. Weights say how often each image is drawn;
all ones give the value itself. Resampling draws images with replacement (Efron's bootstrap), or whole blocks of land
where positions are known, as neighbouring images are no independent witnesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from grafalign.errors import InputError
from grafalign.estimate import Estimate
from grafalign.geo import blocks_touched

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
_AT_ONCE = 16_000_000
"""Weights in memory at a time."""
BLOCK_KM = 10.0
"""Side of the blocks that are drawn where positions are known."""


@dataclass(frozen=True)
class Statistic:
    """Base: knows how to be saved as arrays."""

    kind: ClassVar[str] = ''

    def __call__(self, weights: Weights) -> Floats:
        """Values [B] for weights [B, N] of the images."""
        raise NotImplementedError

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Its arrays, under names that `statistics_from` reads."""
        return {f'{name}/{self.kind}/{f.name}': np.asarray(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class Mean(Statistic):
    """Mean of values over queries, of which an image has `counts`."""

    kind: ClassVar[str] = 'mean'
    values: Floats
    """Sum over the queries of each image, [N]."""
    counts: Floats
    """Queries of each image, [N]."""

    def __call__(self, weights: Weights) -> Floats:
        """See `Statistic`."""
        return _ratio(weights @ self.values, weights @ self.counts)


@dataclass(frozen=True)
class MeanOfClasses(Statistic):
    """Mean over the classes of the mean over the images of each: balanced accuracy."""

    kind: ClassVar[str] = 'classes'
    values: Floats
    """[N]"""
    labels: Ints
    """Class of each image, [N]."""

    def __call__(self, weights: Weights) -> Floats:
        """See `Statistic`; classes that are not drawn are left out."""
        present = np.unique(self.labels)
        member = (self.labels[:, None] == present).astype(np.float64)
        per_class = _ratio(weights @ (member * self.values[:, None]), weights @ member)
        return _mean(per_class)


@dataclass(frozen=True)
class MeanIou(Statistic):
    """Mean intersection over union over the classes that occur in the truth."""

    kind: ClassVar[str] = 'iou'
    counts: Ints
    """Pixels by truth and guess of each image, [N, K, K]."""

    def __call__(self, weights: Weights) -> Floats:
        """See `Statistic`."""
        n, k, _ = self.counts.shape
        total = (weights @ self.counts.reshape(n, -1)).reshape(-1, k, k)
        hit = np.einsum('bkk->bk', total)
        truth = total.sum(2)
        iou = _ratio(hit, truth + total.sum(1) - hit)
        return _mean(np.where(truth > 0, iou, np.nan))


@dataclass(frozen=True)
class MeanAp(Statistic):
    """Mean over the classes of average precision, images ranked by their scores; at `k`, or whole where k is 0.

    AP@k = sum_{i <= k} precision@i * relevant_i / min(k, relevant images). Images that are drawn several times stand
    side by side. Ties stand in a random order that is the same every time, so that the order of the files, which often
    follows the classes, gains nothing.
    """

    kind: ClassVar[str] = 'ap'
    order: npt.NDArray[np.int32]
    """Images from the best score to the worst, of each class, [K, N]."""
    relevant: npt.NDArray[np.bool_]
    """[K, N]"""
    k: int

    def __call__(self, weights: Weights) -> Floats:
        """See `Statistic`; classes without a relevant image are left out."""
        out = np.full((len(weights), len(self.order)), np.nan)
        for row, weight in enumerate(weights):
            for number, order in enumerate(self.order):
                relevant = self.relevant[number]
                total = float(weight[relevant].sum())
                if total > 0:
                    whole = self._at_k if self.k else self._whole
                    out[row, number] = whole(weight, order, relevant, total)
        return _mean(out)

    def _at_k(
        self, weight: Weights, order: npt.NDArray[np.int32], relevant: npt.NDArray[np.bool_], total: float
    ) -> float:
        for reach in (4 * self.k + 64, len(order)):  # drawn blocks of land may leave out all of the first
            first = order[:reach]
            listed = np.repeat(relevant[first], weight[first].astype(np.int64))[: self.k]
            if len(listed) == self.k:
                break
        precision = np.cumsum(listed) / np.arange(1, len(listed) + 1)
        return float((precision * listed).sum() / min(self.k, total))

    def _whole(
        self, weight: Weights, order: npt.NDArray[np.int32], relevant: npt.NDArray[np.bool_], total: float
    ) -> float:
        weight, here = weight[order], relevant[order]
        gain = weight * here
        # copies of an image stand side by side: on average half of the others come before one of them
        before = (weight - 1) / 2
        place = np.cumsum(weight) - before
        found = np.cumsum(gain) - before * here
        return float((found / np.maximum(place, 1) * gain).sum() / total)


_KINDS: dict[str, type[Statistic]] = {s.kind: s for s in (Mean, MeanOfClasses, MeanIou, MeanAp)}


def confusion(truth: Ints, guess: Ints, classes: int, void: int | None = None) -> Ints:
    """Counts [truth, guess] of K classes, [K, K]; truth equal to `void` is left out.

    Example:
        >>> confusion(np.array([0, 0, 1, 9]), np.array([0, 1, 1, 1]), 2, void=9)
        array([[1, 1],
               [0, 1]])
    """
    scored = np.ones(truth.shape, dtype=bool) if void is None else truth != void
    flat = truth[scored].astype(np.int64) * classes + guess[scored]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def statistics_from(content: Mapping[str, npt.NDArray[Any]]) -> dict[str, Statistic]:
    """What `Statistic.arrays` wrote."""
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in content.items():
        name, kind, part = key.split('/')
        parts.setdefault((name, kind), {})[part] = value if value.ndim else value.item()
    return {name: _KINDS[kind](**found) for (name, kind), found in parts.items()}


def ranking(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """Images by falling score for each class, [K, N], of scores [N, K]; equal ones in a fixed random order."""
    mixed = np.random.default_rng(0).permutation(len(scores))
    order = mixed[np.argsort(-scores[mixed], axis=0, kind='stable')].T
    return np.ascontiguousarray(order, dtype=np.int32)


@dataclass(frozen=True)
class Resampling:
    """How images are drawn."""

    groups: Ints
    """Unit of each image, [N], counted from 0: itself, or its block of land."""
    unit: str
    """`images` or `blocks of 10 km`."""
    draws: int = 1000
    seed: int = 0

    def weights(self) -> Iterator[Weights]:
        """Weights of all draws, some at a time, [b, N]; the same for the same groups, draws and seed."""
        units = int(self.groups.max()) + 1
        rng = np.random.default_rng(self.seed)
        left = self.draws
        while left:
            part = max(1, min(left, _AT_ONCE // max(len(self.groups), units)))
            drawn = rng.integers(0, units, (part, units)) + np.arange(part)[:, None] * units
            counts = np.bincount(drawn.ravel(), minlength=part * units).reshape(part, units)
            yield counts.astype(np.float64)[:, self.groups]
            left -= part


def resampling(
    count: int, lonlat: Floats | None, draws: int = 1000, seed: int = 0, block_km: float = BLOCK_KM
) -> Resampling:
    """Draw blocks of land where all positions are known and lie in twenty blocks or more, else images.

    Args:
        count: images.
        lonlat: their positions in degrees, [N, 2].
        draws: bootstrap replicates.
        seed: of the draws.
        block_km: side of a block.
    """
    if lonlat is not None:
        lon, lat = lonlat[:, 0], lonlat[:, 1]
        blocks = blocks_touched(lon, lat, lon, lat, block_km)[:, 0]
        _, groups = np.unique(blocks, return_inverse=True)
        if groups.max() >= 19:
            return Resampling(groups.astype(np.int64), f'blocks of {block_km:g} km', draws, seed)
    return Resampling(np.arange(count), 'images', draws, seed)


def estimates(statistics: Mapping[str, Statistic], how: Resampling) -> dict[str, Estimate]:
    """Value and 95 % interval of each statistic."""
    ones = np.ones((1, len(how.groups)))
    drawn: dict[str, list[Floats]] = {name: [] for name in statistics}
    for weights in how.weights():
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    out = {}
    for name, statistic in statistics.items():
        value = float(statistic(ones)[0])
        every = np.concatenate(drawn[name])
        if not np.isfinite(value):
            raise InputError(f'{name} has no value: no image can be asked; look at the labels of the set.')
        low, high = _interval(every[np.isfinite(every)], value)
        # all are shares of one, but for the last bit
        value, low, high = (min(max(v, 0.0), 1.0) for v in (value, low, high))
        out[name] = Estimate(value=value, low=low, high=high)
    return out


@dataclass(frozen=True)
class Difference:
    """First minus second, on the same images."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided: twice the share of resampled differences on the other side of zero (never below 2 / (draws + 1))."""


def paired_difference(first: Statistic, second: Statistic, how: Resampling) -> Difference:
    """Difference of two models' values, with interval and p, both drawn with the same images.

    Raises:
        GrafalignError: the two are not about the same kind of value.
    """
    if first.kind != second.kind:
        raise InputError('The two results measure different things; compare the same metric of one set.')
    ones = np.ones((1, len(how.groups)))
    drawn = np.concatenate([first(weights) - second(weights) for weights in how.weights()])
    drawn = drawn[np.isfinite(drawn)]
    value = float((first(ones) - second(ones))[0])
    low, high = _interval(drawn, value)
    moved = drawn - _bias(drawn, value)
    beyond = min((moved <= 0).sum(), (moved >= 0).sum())
    p = min(1.0, 2 * (float(beyond) + 1) / (len(drawn) + 1))
    return Difference(value, low, high, p)


def _interval(drawn: Floats, value: float) -> tuple[float, float]:
    """95 % interval of resampled values: percentiles, moved by the bias of the draws (their mean less the value).

    Drawn images stand several times in a ranking, side by side, which flatters average precision; moving takes that
    off. The interval always holds the value.
    """
    low, high = np.percentile(drawn - _bias(drawn, value), [2.5, 97.5]) if len(drawn) else (value, value)
    return float(min(low, value)), float(max(high, value))


def _bias(drawn: Floats, value: float) -> float:
    return float(drawn.mean() - value)


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan).astype(np.float64)


def _mean(values: Floats) -> Floats:
    """Mean over the last axis of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
