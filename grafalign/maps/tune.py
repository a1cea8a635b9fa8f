"""Words that a person's points have moved: a closed form that starts from what the words say of the whole scene.

Of each class two things are known: the land that its words take, of which there is much, and a few points, which are
right. Its mean embedding is a mean of both, in which the land of its words counts as much as w points:

    m_k = (w * land_k + n_k * points_k) / (w + n_k)

With one covariance S for all land, which needs no label, the log odds of the classes are linear (discriminant analysis,
Fisher 1936; from CLIP's features without training: Wang et al., ICLR 2024):

    score_k(x) = a * ((m_k - mu)' S^-1 (x - mu) - (m_k - mu)' S^-1 (m_k - mu) / 2 + log share_k)

The shares of the classes are those with which the scores agree over the scene (Saerens et al. 2002): points are chosen
by hand, so how many there are says nothing. What is added to the variances of S (Friedman 1989), w, and the sharpness
a are those of a few values with which a point's class is most likely when the point is left out.

Example: two classes on a line; the words put the border at 0, two points a class say that it is at 1
    >>> land = np.array([[-2.0], [-1.0], [0.5], [3.0], [4.0], [4.5]])
    >>> words = np.array([[-1.0], [1.0]])
    >>> points, labels = np.array([[-1.0], [0.6], [3.0], [4.0]]), np.array([0, 0, 1, 1])
    >>> tuned = tune((land @ words.T).argmax(1), land @ words.T, land, points, labels)
    >>> (land @ tuned.vectors.T + tuned.offsets).argmax(1).tolist()
    [0, 0, 0, 1, 1, 1]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

WEIGHTS = (3.0, 10.0, 30.0, 100.0)
"""How many points the land of the words may count as. With fewer than three, a class of one point would be that point;
with 100, thirty points hardly count."""
RIDGES = (0.1, 0.03, 0.01)
"""Of the mean variance, what may be added to all variances."""
SHARPNESS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""What log odds may be multiplied by: land is no normal distribution, and without that they are too sure."""
_FEWEST = 20
"""Cells of land that stand for a class whose words win nowhere."""
_ROUNDS = 10
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tuned:
    """Log odds of classes: embeddings @ vectors.T + offsets."""

    vectors: Floats
    """[K, D]"""
    offsets: Floats
    """[K]"""
    weight: float
    """w."""
    ridge: float
    """What was added to the variances, as a share of their mean."""
    sharpness: float
    """a."""
    likelihood: float
    """Mean over classes of the mean log probability of a point's own class, when it is left out."""
    right: float
    """Mean over classes of the share of points that are right when they are left out."""


def tune(taken: Ints, scores: Floats, land: Floats, points: Floats, labels: Ints) -> Tuned:
    """Move the words of classes towards points.

    Args:
        taken: the class whose words each cell of the scene goes to, [N].
        scores: of the words in these cells, [N, K].
        land: their embeddings, [N, D].
        points: embeddings at the points, [P, D].
        labels: the class of each point, [P]; classes may have none.
    """
    center = land.mean(0)
    spread = np.cov(land.T).reshape(len(center), len(center))
    every = np.trace(spread) / len(center) * np.eye(len(center))
    words = _word_means(taken, scores, land)
    fits = []
    for ridge in RIDGES:
        inverse = np.linalg.inv(spread + ridge * every)
        for weight in WEIGHTS:
            fits += [replace(fit, ridge=ridge) for fit in _fits(weight, words, center, inverse, land, points, labels)]
    return max(fits, key=lambda fit: fit.likelihood)


def balanced_mean(values: Floats, labels: Ints) -> float:
    """The mean over classes of the mean of their points."""
    return float(np.mean([values[labels == label].mean() for label in np.unique(labels)]))


def _word_means(taken: Ints, scores: Floats, land: Floats) -> Floats:
    """Mean embedding of the land of each class's words, [K, D]; at least of the cells where they come nearest."""
    classes = scores.shape[1]
    out = np.empty((classes, land.shape[1]))
    for number in range(classes):
        cells = np.flatnonzero(taken == number)
        if len(cells) < _FEWEST:
            rivals = np.delete(scores, number, axis=1).max(1)
            cells = np.argsort(rivals - scores[:, number], kind='stable')[:_FEWEST]
        out[number] = land[cells].mean(0)
    return out


def _fits(
    weight: float, words: Floats, center: Floats, inverse: Floats, land: Floats, points: Floats, labels: Ints
) -> list[Tuned]:
    """The log odds at one weight, at every sharpness."""
    count = np.bincount(labels, minlength=len(words)).astype(float)
    total = np.zeros_like(words)
    np.add.at(total, labels, points)
    vectors, offsets = _log_odds((weight * words + total) / (weight + count)[:, None], center, inverse)
    share = _log_shares(land @ vectors.T + offsets)
    # each point without itself: only its own class changes
    own = np.arange(len(points))
    others = (weight * words[labels] + total[labels] - points) / (weight + count[labels] - 1)[:, None]
    their_vectors, their_offsets = _log_odds(others, center, inverse)
    scores = points @ vectors.T + offsets + share
    scores[own, labels] = (their_vectors * points).sum(1) + their_offsets + share[labels]
    right = balanced_mean((scores.argmax(1) == labels).astype(float), labels)
    fits = []
    for sharpness in SHARPNESS:
        likelihood = sharpness * scores[own, labels] - _log_sum(sharpness * scores)
        mean = balanced_mean(likelihood, labels)
        fits.append(Tuned(sharpness * vectors, sharpness * (offsets + share), weight, 0, sharpness, mean, right))
    return fits


def _log_odds(means: Floats, center: Floats, inverse: Floats) -> tuple[Floats, Floats]:
    """Vectors and offsets of classes with these means."""
    away = means - center
    vectors = away @ inverse
    return vectors, -((0.5 * away + center) * vectors).sum(1)


def _log_shares(scores: Floats) -> Floats:
    """Log shares of the classes, [K], that the probabilities of all land agree with; each counted once more."""
    share = np.full(scores.shape[1], 1 / scores.shape[1])
    for _ in range(_ROUNDS):
        logits = scores + np.log(share)
        chance = np.exp(logits - _log_sum(logits)[:, None])
        share = (chance.sum(0) + 1) / (len(scores) + len(share))
    return np.log(share)


def _log_sum(scores: Floats) -> Floats:
    most = scores.max(1)
    return np.log(np.exp(scores - most[:, None]).sum(1)) + most
