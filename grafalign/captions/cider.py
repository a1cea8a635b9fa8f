"""CIDEr-D: how far a caption says what people say of that image and not of others (Vedantam et al., CVPR 2015).

N-grams of one to four words count by how often they occur and how few images' references have them. A caption's score
is ten times the mean, over lengths of n-grams and over references, of the cosine of the two, in which no n-gram counts
more often than the reference has it, times a Gaussian of the difference in length. As in coco-caption, but for the
words: letters and digits in lower case, without its Java tokenizer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_LENGTHS = (1, 2, 3, 4)
_SIGMA = 6.0
_WORD = re.compile(r"\w+(?:'\w+)?")


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each caption, 0 to 10; that of a set is their mean.

    Args:
        captions: one of each image.
        references: those that people wrote of each image; what is rare follows from all of them.

    Example:
        >>> scores = cider(['a red roof', 'a blue lake'], [['a red roof'], ['a green field']])
        >>> [round(score, 2) for score in scores]
        [7.5, 0.0]
    """
    counted = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(gram for texts in counted for gram in {g for grams in texts for g in grams})
    largest = math.log(max(1, len(references)))

    def weighted(grams: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: count * (largest - math.log(max(1, frequency[gram]))) for gram, count in grams.items()}

    scores = []
    for text, texts in zip(captions, counted, strict=True):
        grams = _ngrams(text)
        ours, similarity = weighted(grams), 0.0
        for reference in texts:
            similarity += _similarity(ours, weighted(reference), _words(grams) - _words(reference))
        scores.append(10 * similarity / max(1, len(texts)))
    return scores


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter(tuple(words[i : i + n]) for n in _LENGTHS for i in range(len(words) - n + 1))


def _words(grams: Counter[tuple[str, ...]]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def _similarity(ours: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float], longer: int) -> float:
    """Mean of the clipped cosines over the lengths of n-grams, times the penalty for another length."""
    total = 0.0
    for n in _LENGTHS:
        mine, other = ({g: w for g, w in vector.items() if len(g) == n} for vector in (ours, theirs))
        product = sum(min(weight, other[gram]) * other[gram] for gram, weight in mine.items() if gram in other)
        norm = math.hypot(*mine.values()) * math.hypot(*other.values())
        total += product / norm if norm else 0.0
    return total / len(_LENGTHS) * math.exp(-(longer**2) / (2 * _SIGMA**2))
