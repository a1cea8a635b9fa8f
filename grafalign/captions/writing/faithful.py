"""How far captions keep to the records that they rest on, as the field measures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from grafalign.captions.writing.check import check_caption
from grafalign.captions.writing.endpoint import Attempt
from grafalign.captions.writing.template import VisibleLandmark


@dataclass(frozen=True)
class Faithfulness:
    """How far captions keep to the records, as the field measures it."""

    captions: int
    names: int
    false_names: int
    """Proper nouns that no record of the image holds: over `names` the false-discovery rate of fMoW-mm."""
    kinds: int
    false_kinds: int
    """Kinds that no record of the image holds: over `kinds` CHAIR_i (Rohrbach et al. 2018)."""
    with_false_kinds: int
    """Captions with such a kind: over `captions` CHAIR_s."""


_OTHERS = 256
"""Images whose landmarks stand for those of others."""


class Tally:
    """Counts what captions say against their own image's landmarks, and against another's.

    Args:
        images: rows of images and their visible landmarks.
    """

    def __init__(self, images: Iterable[tuple[int, list[VisibleLandmark]]]) -> None:
        rng = np.random.default_rng(0)
        self._others: list[tuple[int, list[VisibleLandmark]]] = []
        for number, one in enumerate(images):  # a sample of all, in one pass (Vitter's algorithm R, 1985)
            if number < _OTHERS:
                self._others.append(one)
            elif (place := int(rng.integers(number + 1))) < _OTHERS:
                self._others[place] = one
        self._counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        self._first: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        """How often the model was asked, and what it took."""

    def add(self, row: int, visible: Sequence[VisibleLandmark], text: str, evidence: Sequence[str]) -> None:
        """Take in a caption of an image with these landmarks."""
        used = [s for s in visible if s.landmark_id in set(evidence)]
        others = [found for other, found in self._others if other != row]
        self._count(self._counts[0], text, used)
        if others:
            self._count(self._counts[1], text, others[row % len(others)])

    def add_attempt(self, attempt: Attempt) -> None:
        """Take in what a model wrote of an image."""
        if attempt.first:
            names, false_names, kinds, false_kinds = attempt.first
            self._first.update(captions=1, names=names, false_names=false_names, kinds=kinds, false_kinds=false_kinds)
            self._first['with_false_kinds'] += false_kinds > 0
        self.attempts.update(
            retried=int(attempt.tries > 1),
            fell_back=int(attempt.text is None),
            prompt_tokens=attempt.prompt_tokens,
            answer_tokens=attempt.answer_tokens,
        )

    @staticmethod
    def _count(counts: Counter[str], text: str, records: Sequence[VisibleLandmark]) -> None:
        found = check_caption(text, records)
        counts['captions'] += 1
        counts['names'] += found.names
        counts['false_names'] += found.foreign_names
        counts['kinds'] += found.kinds
        counts['false_kinds'] += found.foreign_kinds
        counts['with_false_kinds'] += found.foreign_kinds > 0

    def faithful(self) -> Faithfulness:
        """Against the captions' own evidence."""
        return _faithfulness(self._counts[0])

    def shuffled(self) -> Faithfulness:
        """Against the landmarks of another image."""
        return _faithfulness(self._counts[1])

    def first(self) -> Faithfulness:
        """Of what a model wrote of each image before anything was complained about."""
        return _faithfulness(self._first)


def _faithfulness(counts: Counter[str]) -> Faithfulness:
    names = ('captions', 'names', 'false_names', 'kinds', 'false_kinds', 'with_false_kinds')
    return Faithfulness(*(int(counts[name]) for name in names))
