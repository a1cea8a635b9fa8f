"""Zero-shot classification by cosine, with an optional correction for how often photos show each class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def class_scores(embeddings: Floats, classes: Floats, log_prior: Floats | None = None, tau: float = 0.07) -> Floats:
    """Scores [..., K] of embeddings [..., D] against class vectors [K, D]; the largest wins.

    InfoNCE learns log p(class | tile) / p(class) (van den Oord et al. 2018, eq. 5), so plain cosine favours classes
    that few photos show. With `log_prior` the score becomes cosine + tau log p(class), which ranks by p(class | tile).

    Args:
        embeddings: unit vectors.
        classes: unit class vectors.
        log_prior: log of each class's share, [K]; see `photo_prior`. Right where the tiles to be classified show the
            classes as often as the photos do; wrong on sets that are balanced by hand.
        tau: temperature of the training.
    """
    scores = embeddings @ classes.T
    return scores if log_prior is None else scores + tau * log_prior


def photo_prior(photos: Floats, classes: Floats) -> Floats:
    """Log share of each class among the photos of a ground bank, by zero-shot CLIP: no satellite label is used.

    Args:
        photos: unit photo embeddings [P, D].
        classes: unit class vectors [K, D].

    Returns:
        [K]; every class is counted once more than it occurs, so that none has zero share.
    """
    nearest = (np.asarray(photos, dtype=np.float32) @ classes.T).argmax(1)
    count = np.bincount(nearest, minlength=len(classes)) + 1.0
    return np.asarray(np.log(count / count.sum()), dtype=np.float32)
