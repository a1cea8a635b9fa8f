"""Zero-shot classification by cosine, with an optional correction for how often photos show each class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating]


def class_scores(embeddings: Floats, classes: Floats, bias: Floats | None = None) -> Floats:
    """Scores [..., K] of embeddings [..., D] against class vectors [K, D]; the largest wins.

    Args:
        embeddings: unit vectors.
        classes: unit class vectors.
        bias: added to the scores of each class, [K]; see `photo_prior`.
    """
    scores = embeddings @ classes.T
    return scores if bias is None else scores + bias


def photo_prior(photos: Floats, classes: Floats, tau: float, strength: float = 1.0) -> Floats:
    """What to add to class scores so that classes which many photos show are not held back.

    InfoNCE learns log p(class | tile) / p(class) (van den Oord et al. 2018, eq. 5), so plain cosine favours classes
    that few photos show. Adding tau log p(class) ranks by p(class | tile). The shares are counted among the photos by
    zero-shot CLIP: no satellite label is used.

    Args:
        photos: unit photo embeddings of a photo bank [P, D].
        classes: unit class vectors [K, D].
        tau: temperature of the training.
        strength: 1 is Bayes' rule where places show the classes as often as photos do, 0 is no correction (right for
            sets balanced by hand). People photograph sights more than fields, so for maps the best lies between.

    Returns:
        [K]: strength * tau * log share; every class is counted once more than it occurs, so that none has share zero.
    """
    nearest = (np.asarray(photos, dtype=np.float32) @ classes.T).argmax(1)
    count = np.bincount(nearest, minlength=len(classes)) + 1.0
    return np.asarray(strength * tau * np.log(count / count.sum()), dtype=np.float32)


def scores_by_class(scores: Tensor, class_of: npt.NDArray[np.int64]) -> Tensor:
    """Scores of vectors [..., V] as scores of classes [..., K]: the highest of each class's.

    Args:
        scores: of V vectors.
        class_of: the class of each vector, [V], rising from 0.

    Example:
        >>> scores_by_class(torch.tensor([0.1, 0.3, 0.2]), np.array([0, 0, 1]))
        tensor([0.3000, 0.2000])
    """
    count = int(class_of[-1]) + 1
    if scores.shape[-1] == count:
        return scores
    index = torch.from_numpy(class_of).expand(scores.shape)
    empty = torch.full((*scores.shape[:-1], count), -torch.inf, dtype=scores.dtype)
    return empty.scatter_reduce(-1, index, scores, 'amax')
