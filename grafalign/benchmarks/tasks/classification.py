"""Zero-shot classification: cosine against class vectors, one label an image or several.

Inductive: an image's guess depends on that image alone. `transductive` takes each class's mean score over the test
images off first, as some published code does; it is off unless asked for, and a result says so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.statistics import Mean, MeanAp, MeanOfClasses, Statistic, confusion, ranking
from grafalign.benchmarks.tasks.outcome import Outcome, by_class
from grafalign.datasets import ImageSet
from grafalign.encoders.ensemble import ensemble
from grafalign.errors import InputError

Vectors = npt.NDArray[np.float32]


def classify(images: Vectors, prompts: Vectors, data: ImageSet, *, transductive: bool = False) -> Outcome:
    """Top-1, top-5 and balanced accuracy of single labels; mean average precision of several.

    Args:
        images: unit embeddings [N, D].
        prompts: unit embeddings [P, K, D] of every prompt with every class.
        data: gives the labels.
        transductive: take each class's mean score over the images off.

    Raises:
        GrafalignError: the set has no labels, fewer than two classes, or another number than the prompts.
    """
    if len(data.classes) < 2 or prompts.shape[1] != len(data.classes):
        raise InputError(
            f'{data.name} has {len(data.classes)} classes and the texts are of {prompts.shape[1]}; '
            'there must be two or more, and a text for each.'
        )
    scores = images @ ensemble(prompts).T
    if transductive:
        scores = scores - scores.mean(0)
    if data.labels is not None:
        return _single(images, prompts, scores, data.labels, data.classes)
    if data.many is not None:
        return _several(scores, data.many, data.classes)
    raise InputError(f'{data.name} has no labels; classification needs them.')


def _single(
    images: Vectors, prompts: Vectors, scores: Vectors, labels: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> Outcome:
    guess = scores.argmax(1)
    right = (guess == labels).astype(np.float64)
    ones = np.ones(len(labels))
    statistics: dict[str, Statistic] = {'top1': Mean(right, ones)}
    if len(classes) > 5:
        statistics['top5'] = Mean(in_top(scores, labels, 5).astype(np.float64), ones)
    statistics['balanced'] = MeanOfClasses(right, labels)
    counts = confusion(labels, guess, len(classes))
    total = counts.sum(1)
    recall = np.where(total > 0, np.diag(counts) / np.maximum(total, 1), np.nan)
    found = counts.sum(0)
    precision = np.where(found > 0, np.diag(counts) / np.maximum(found, 1), np.nan)
    extra: dict[str, object] = {'images_per_class': {c: int(t) for c, t in zip(classes, total, strict=True)}}
    if len(prompts) > 1:
        singles = np.array([((images @ p.T).argmax(1) == labels).mean() for p in prompts])
        extra['single_prompts'] = {
            'count': len(singles),
            'mean': float(singles.mean()),
            'min': float(singles.min()),
            'max': float(singles.max()),
            'best': int(singles.argmax()),
            'worst': int(singles.argmin()),
        }
    margin = scores.max(1) - scores[np.arange(len(labels)), labels]
    return Outcome(
        statistics,
        'top1',
        {'top1': by_class(classes, recall), 'precision': by_class(classes, precision)},
        extra,
        {'guess': guess, 'truth': labels, 'confusion': counts, 'margin': margin.astype(np.float32)},
    )


def _several(scores: Vectors, labels: npt.NDArray[np.bool_], classes: tuple[str, ...]) -> Outcome:
    relevant = labels.T
    order = ranking(scores)
    ap = np.array(
        [MeanAp(order[i : i + 1], relevant[i : i + 1], 0)(np.ones((1, len(scores))))[0] for i in range(len(relevant))]
    )
    counts = {c: int(r.sum()) for c, r in zip(classes, relevant, strict=True)}
    return Outcome(
        {'map': MeanAp(order, relevant, 0)},
        'map',
        {'ap': by_class(classes, ap)},
        {'images_per_class': counts},
    )


def in_top(scores: Vectors, labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    """Whether the label is among the k best classes: fewer than k classes score higher, or as high and come first."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1) < k
