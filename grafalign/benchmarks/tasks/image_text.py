"""Images and their captions, both ways: recall at 1, 5 and 10, and the mean of the six.

A query is right at k if one of its positives is among the k best. Two rules for captions that occur more than once:

    own      as the field does it: every copy is a text of its own, right for its own image only
    shared   equal captions are one text, right for every image that has it

Under `own` the copies of another image's caption tie with one's own exactly; chance decides between them, and values
are expectations over it (`retrieval/ranks.py`), where other code reports whichever came first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.statistics import Mean, Statistic
from grafalign.benchmarks.tasks.outcome import Outcome
from grafalign.datasets import ImageSet
from grafalign.errors import InputError
from grafalign.retrieval import hits_at, positive_ranks

Duplicates = Literal['own', 'shared']
KS = (1, 5, 10)
Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def caption_table(captions: Sequence[Sequence[str]], duplicates: Duplicates) -> tuple[list[str], Ints, Ints]:
    """Texts, and pairs of a text and an image that it is right for.

    Args:
        captions: of each image.
        duplicates: the rule.

    Returns:
        Texts [T]; text and image of each pair, [M] each.
    """
    flat = [text for texts in captions for text in texts]
    image = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    if duplicates == 'own':
        return flat, np.arange(len(flat)), image
    number = {text: i for i, text in enumerate(dict.fromkeys(flat))}
    pairs = np.unique(np.stack([[number[t] for t in flat], image], axis=1), axis=0)
    return list(number), pairs[:, 0], pairs[:, 1]


def retrieve_captions(images: Vectors, texts: Vectors, text_of_pair: Ints, image_of_pair: Ints) -> Outcome:
    """Recall both ways.

    Args:
        images: unit embeddings [N, D].
        texts: unit embeddings [T, D].
        text_of_pair: text of each positive pair, [M].
        image_of_pair: its image, [M].

    Raises:
        GrafalignError: an image or a text is in no pair.
    """
    if len(np.unique(image_of_pair)) != len(images) or len(np.unique(text_of_pair)) != len(texts):
        raise InputError('An image without caption, or a caption without image, cannot be retrieved; leave it out.')
    to_text = positive_ranks(images, texts, image_of_pair, text_of_pair, best_only=True)
    to_image = positive_ranks(texts, images, text_of_pair, image_of_pair, best_only=True)
    # a text counts with the first of its images when images are drawn
    owner = np.full(len(texts), len(images), dtype=np.int64)
    np.minimum.at(owner, text_of_pair, image_of_pair)
    per_image = np.bincount(owner, minlength=len(images)).astype(np.float64)
    statistics: dict[str, Statistic] = {}
    for k in KS:
        statistics[f'image_to_text_r@{k}'] = Mean(hits_at(to_text, k), np.ones(len(images)))
    for k in KS:
        hits = np.bincount(owner, weights=hits_at(to_image, k), minlength=len(images)).astype(np.float64)
        statistics[f'text_to_image_r@{k}'] = Mean(hits, per_image)
    # the mean of six ratios whose denominators differ is no ratio of sums: it gets weights of its own
    values = sum(s.values / s.counts.sum() for s in statistics.values() if isinstance(s, Mean)) * len(images) / 6
    statistics['mean_recall'] = Mean(np.asarray(values), np.ones(len(images)))
    first = to_text.first
    arrays = {'rank_of_image': (to_text.above[first] + to_text.tied[first] / 2 + 1).astype(np.float32)}
    return Outcome(statistics, 'mean_recall', {}, {'texts': len(texts), 'pairs': len(text_of_pair)}, arrays)


def evaluate_captions(
    images: Vectors,
    data: ImageSet,
    embed: Callable[[Sequence[str]], Vectors],
    duplicates: Duplicates,
    count_cut: Callable[[Sequence[str]], int] | None = None,
) -> Outcome:
    """Both directions under one rule, and mean recall under the other beside it.

    Args:
        images: unit embeddings [N, D].
        data: gives the captions.
        embed: texts to unit vectors.
        duplicates: the rule of the result.
        count_cut: how many texts are longer than the model reads.
    """
    if data.captions is None:
        raise InputError(f'{data.name} has no captions; retrieval of images and texts needs them.')
    unique, text, image = caption_table(data.captions, 'shared')
    vectors = embed(unique)
    flat, own_text, own_image = caption_table(data.captions, 'own')
    number = {t: i for i, t in enumerate(unique)}
    own = vectors[[number[t] for t in flat]]
    both = {
        'shared': retrieve_captions(images, vectors, text, image),
        'own': retrieve_captions(images, own, own_text, own_image),
    }
    kept, other = both[duplicates], both['own' if duplicates == 'shared' else 'shared']
    ones = np.ones((1, len(images)))
    extra = {
        'captions': len(flat),
        'captions_without_copies': len(unique),
        **({} if count_cut is None else {'captions_cut': count_cut(flat)}),
        'mean_recall_of_other_rule': float(other.statistics['mean_recall'](ones)[0]),
    }
    return Outcome(kept.statistics, kept.main, {}, {**kept.extra, **extra}, kept.arrays)
