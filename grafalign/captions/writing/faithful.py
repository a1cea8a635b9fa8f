"""How far captions keep to the records that they rest on, as the field measures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grafalign.captions.writing.check import check_caption
from grafalign.captions.writing.endpoint import Attempt
from grafalign.captions.writing.template import Seen


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


class Tally:
    """Counts what captions say against their own image's landmarks, and against another's."""

    def __init__(self, seen: Mapping[int, Sequence[Seen]]) -> None:
        rows = sorted(seen)
        shift = np.random.default_rng(0).permutation(rows).tolist()
        others = dict(zip(shift, [*shift[1:], *shift[:1]], strict=True))  # everybody gets somebody else's
        self._seen = {row: (seen[row], seen[others[row]]) for row in rows}
        self._counts: tuple[Counter[str], Counter[str]] = Counter(), Counter()

    def add(self, row: int, text: str, evidence: Sequence[str]) -> None:
        """Take in a caption."""
        mine, other = self._seen[row]
        used = [s for s in mine if s.landmark_id in set(evidence)]
        for counts, records in zip(self._counts, (used, other), strict=True):
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


def first_attempts(attempts: Mapping[int, Attempt]) -> Faithfulness:
    """Of what a model wrote of each image before anything was complained about."""
    counts: Counter[str] = Counter()
    for attempt in attempts.values():
        names, false_names, kinds, false_kinds = attempt.first
        counts.update(captions=1, names=names, false_names=false_names, kinds=kinds, false_kinds=false_kinds)
        counts['with_false_kinds'] += false_kinds > 0
    return _faithfulness(counts)


def _faithfulness(counts: Counter[str]) -> Faithfulness:
    names = ('captions', 'names', 'false_names', 'kinds', 'false_kinds', 'with_false_kinds')
    return Faithfulness(*(int(counts[name]) for name in names))
