"""An image as query, the others of its class as what should be found: an image is never its own answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.statistics import Mean
from grafalign.benchmarks.tasks.class_retrieval import relevance
from grafalign.benchmarks.tasks.outcome import Outcome
from grafalign.datasets import ImageSet
from grafalign.errors import InputError
from grafalign.retrieval import average_precision_at, nearest

CUTS = (20, 100)


def retrieve_images(images: npt.NDArray[np.float32], data: ImageSet) -> Outcome:
    """Recall at 1 and mean average precision at 20 and 100 over all images that have another of their class.

    Images with several labels have found one that shares a label.

    Raises:
        GrafalignError: the set has no labels.
    """
    member = relevance(data)
    if len(images) < 2:
        raise InputError(f'{data.name} has one image; there is no other to find.')
    _, rows = nearest(images, images, max(CUTS) + 1)
    # the image itself is taken out wherever it stands; an exact copy of it is an answer like any other
    here = np.arange(len(images))
    own = rows == here[:, None]
    own[~own.any(1), -1] = True  # copies filled the list: the last one makes room
    others = rows[~own].reshape(len(images), -1)
    relevant = np.zeros(others.shape, dtype=bool)
    total = np.full(len(images), -1, dtype=np.int64)
    sharing = member.sum(1)
    if (member.sum(0) == 1).all():
        label = member.argmax(0)
        relevant = label[others] == label[:, None]
        total += sharing[label]
    else:
        for row in here:
            mine = member[:, row]
            relevant[row] = member[mine][:, others[row]].any(0)
            total[row] += int(member[mine].any(0).sum())
    answerable = (total > 0).astype(np.float64)
    statistics = {'r@1': Mean(np.where(answerable > 0, relevant[:, 0], 0.0), answerable)}
    for k in CUTS:
        ap = average_precision_at(relevant[:, :k], total)
        statistics[f'map@{k}'] = Mean(np.nan_to_num(ap), answerable)
    return Outcome(statistics, 'map@100', {}, {'queries': int(answerable.sum())})
