"""A class's words as query, images as gallery: mean average precision at 20, at 100, and of the whole ranking."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.statistics import MeanAp, ranking
from grafalign.benchmarks.tasks.outcome import Outcome, by_class
from grafalign.datasets import ImageSet
from grafalign.encoders.ensemble import ensemble
from grafalign.errors import InputError

CUTS = {'map@20': 20, 'map@100': 100, 'map': 0}


def retrieve_classes(images: npt.NDArray[np.float32], prompts: npt.NDArray[np.float32], data: ImageSet) -> Outcome:
    """Rank all images for each class.

    Args:
        images: unit embeddings [N, D].
        prompts: unit embeddings [P, K, D].
        data: gives the labels.

    Raises:
        GrafalignError: the set has no labels.
    """
    relevant = relevance(data)
    if relevant.shape[0] != prompts.shape[1]:
        raise InputError(
            f'{data.name} has {len(relevant)} classes and the texts are of {prompts.shape[1]}; give one for each.'
        )
    order = ranking(images @ ensemble(prompts).T)
    statistics = {name: MeanAp(order, relevant, k) for name, k in CUTS.items()}
    ones = np.ones((1, len(images)))
    per_class = {
        name: by_class(
            data.classes,
            np.array([MeanAp(s.order[i : i + 1], relevant[i : i + 1], s.k)(ones)[0] for i in range(len(relevant))]),
        )
        for name, s in statistics.items()
    }
    return Outcome(statistics, 'map@100', per_class)


def relevance(data: ImageSet) -> npt.NDArray[np.bool_]:
    """Which images are relevant for which class, [K, N].

    Raises:
        GrafalignError: the set has no labels.
    """
    if data.many is not None:
        return np.ascontiguousarray(data.many.T)
    if data.labels is None:
        raise InputError(f'{data.name} has no labels; retrieval by class needs them.')
    return data.labels[None] == np.arange(len(data.classes))[:, None]
