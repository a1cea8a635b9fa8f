"""How answers to RSVQA are counted: by type, with its buckets, and beside what can be had without looking.

AA is the mean of the accuracies of the types, OA the share of all questions (Lobry et al., TGRS 2020). Counts of LR and
areas of HR are right where they fall into the right bucket; counts of HR must be exact. Newer papers on large models
leave counts and areas out ("non-numeric"); that is reported as well.

A number means little alone, as most answers are no and 0. So each stands beside two: `blind`, the commonest answer of
each type in the training split, and `shuffled`, the same programs on pictures that the questions are not about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grafalign.questions.rsvqa import Kind, QuestionAnswer

NUMERIC = ('count', 'area')
_EDGES: dict[tuple[Kind, str], tuple[int, ...]] = {
    ('lr', 'count'): (0, 10, 100, 1000),
    ('hr', 'area'): (0, 10, 100, 1000),
}
"""Largest value of each bucket but the last."""
_NAMES = {
    'count': ('0', 'between 0 and 10', 'between 10 and 100', 'between 100 and 1000', 'more than 1000'),
    'area': ('0m2', 'between 0m2 and 10m2', 'between 10m2 and 100m2', 'between 100m2 and 1000m2', 'more than 1000m2'),
}
"""As the authors spell them. Others write "between 1 and 10", "between 11 and 100", "between 101 and 1000"."""


def counted_as(answer: str, type_: str, kind: Kind) -> str:
    """What an answer counts as: its bucket in the authors' spelling, whichever spelling it comes in, or itself.

    Example:
        >>> counted_as('7', 'count', 'lr'), counted_as('between 1 and 10', 'count', 'lr')
        ('between 0 and 10', 'between 0 and 10')
        >>> counted_as('7', 'count', 'hr')
        '7'
    """
    text = ' '.join(answer.lower().split())
    if type_ == 'LC':
        return ' and '.join(sorted(text.split(' and ')))
    edges = _EDGES.get((kind, type_))
    if edges is None:
        return text
    numbers = [int(n) for n in re.findall(r'\d+', text.replace('m2', '').replace(',', ''))]
    if not numbers:
        return text
    if text.startswith('more than'):
        return _NAMES[type_][-1]
    return _NAMES[type_][int(np.searchsorted(edges, numbers[-1]))]


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers."""

    by_type: dict[str, float]
    aa: float
    oa: float
    non_numeric: float | None
    """Of all questions but counts and areas; None where there are no others."""


def accuracy(questions: Sequence[QuestionAnswer], answers: Sequence[str], kind: Kind) -> Accuracy:
    """Count right answers.

    Args:
        questions: N questions, at least one.
        answers: one each.
        kind: of the data set, whose buckets count.
    """
    right = np.array(
        [
            counted_as(given, question.type, kind) == counted_as(question.answer, question.type, kind)
            for question, given in zip(questions, answers, strict=True)
        ]
    )
    types = np.array([question.type for question in questions])
    by_type = {name: float(right[types == name].mean()) for name in sorted(set(types.tolist()))}
    words = ~np.isin(types, NUMERIC)
    return Accuracy(
        by_type,
        float(np.mean(list(by_type.values()))),
        float(right.mean()),
        float(right[words].mean()) if words.any() else None,
    )


def blind_answers(train: Sequence[QuestionAnswer], kind: Kind) -> dict[str, str]:
    """The commonest answer of each type, as it counts."""
    common: dict[str, Counter[str]] = {}
    for question in train:
        common.setdefault(question.type, Counter())[counted_as(question.answer, question.type, kind)] += 1
    return {name: count.most_common(1)[0][0] for name, count in common.items()}


def other_pictures(images: Sequence[str], seed: int) -> Mapping[str, str]:
    """For each picture another one, each taken once; the only one is its own.

    Args:
        images: names, each once.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    return {images[a]: images[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
