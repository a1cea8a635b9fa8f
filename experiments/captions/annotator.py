"""An imagined annotator: looks at a tile's true classes and writes one caption with the gaps that people leave.

How often what happens (each by itself, for every caption or every subject):

- *how many subjects*: 45 % of the captions name at most one, 40 % at most two, 15 % at most three, the most striking
  first. An object (stadium, oil tanks, ...) strikes four times as much as an area of its size.
- *what is missed*: areas under 10 % of the tile and objects under 2 % always; of the rest an area goes unnoticed in
  25 %, an object in 15 %, and what strikes most in 3 % of the cases. Whoever notices nothing names what strikes most.
- *what is wrong*: 5 % of the subjects are taken for something that looks alike from above (`ALIKE`).
- *what is vague*: 8 % of the subjects get a word that several classes share (`VAGUE`), where there is one.
- *words*: the class's first name in 55 %, one of its synonyms otherwise, as in the captions of the tiny CLIP, whose
  text encoder knows no other words: none that says "from above". Its sentences join two subjects at most; a third
  one is new to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from grafalign.sandbox.classes import CLASS_ID, LAND_CLASSES

Floats = npt.NDArray[np.float32]

SUBJECTS = (0.45, 0.40, 0.15)
OBJECT_STRIKES = 4.0
LEAST_AREA, LEAST_OBJECT = 0.10, 0.02
UNNOTICED_AREA, UNNOTICED_OBJECT, UNNOTICED_MAIN = 0.25, 0.15, 0.03
WRONG, VAGUELY, FIRST_NAME = 0.05, 0.08, 0.55
TEMPLATES = ('a photo of {}.', '{}.', 'this is {}.', 'a picture of {}.', 'a snapshot of {}.')

ALIKE = (
    ('broadleaf forest', 'conifer forest', 'orchard'),
    ('orchard', 'vineyard', 'cropland'),
    ('meadow', 'cropland', 'golf course', 'marsh'),
    ('marsh', 'water'),
    ('marina', 'water'),
    ('beach', 'bare rock', 'quarry'),
    ('suburb', 'old town', 'tower blocks'),
    ('warehouses', 'greenhouses', 'parking lot', 'solar farm'),
    ('airport runway', 'parking lot'),
    ('oil tanks', 'roundabout', 'stadium'),
)
"""Classes that are taken for each other."""
VAGUE = {
    'trees': ('broadleaf forest', 'conifer forest', 'orchard'),
    'field': ('meadow', 'cropland', 'vineyard', 'golf course', 'solar farm'),
    'water': ('marsh', 'marina'),
    'houses': ('suburb', 'old town', 'tower blocks'),
    'halls': ('warehouses', 'greenhouses', 'stadium'),
    'rock': ('bare rock', 'quarry'),
    'sand': ('beach',),
    'cars': ('parking lot',),
}
"""Vague words, all from the tiny CLIP's vocabulary, and the classes that they are used for."""

_IS_OBJECT = np.array([c.is_object for c in LAND_CLASSES])
_VAGUE_OF = {CLASS_ID[name]: word for word, names in VAGUE.items() for name in names}
_ALIKE_OF = {
    c: sorted({CLASS_ID[n] for group in ALIKE if LAND_CLASSES[c].name in group for n in group} - {c})
    for c in range(len(LAND_CLASSES))
}


class Caption(NamedTuple):
    """What an annotator wrote of a tile."""

    text: str
    named: tuple[int, ...]
    """The classes that were meant, right or wrong, by number."""


def say(shares: Floats, rng: np.random.Generator) -> Caption:
    """Caption a tile.

    Args:
        shares: share of each class in the tile, [K].
        rng: decides what is missed, mistaken and how it is said.
    """
    strikes = shares * np.where(_IS_OBJECT, OBJECT_STRIKES, 1)
    order = [int(c) for c in np.argsort(-strikes, kind='stable') if strikes[c] > 0]
    missed = np.where(_IS_OBJECT, UNNOTICED_OBJECT, UNNOTICED_AREA)
    seen = []
    for rank, c in enumerate(order):
        large = shares[c] >= (LEAST_OBJECT if _IS_OBJECT[c] else LEAST_AREA)
        if large and rng.random() >= (missed[c] if rank else UNNOTICED_MAIN):
            seen.append(c)
    named = (seen or order[:1])[: int(rng.choice(len(SUBJECTS), p=SUBJECTS)) + 1]
    named = [int(rng.choice(_ALIKE_OF[c])) if rng.random() < WRONG else c for c in named]
    named = list(dict.fromkeys(named))
    words = dict.fromkeys(_word(c, rng) for c in named)  # nobody says "trees and trees"
    return Caption(str(rng.choice(TEMPLATES)).format(' and '.join(words)), tuple(named))


def _word(number: int, rng: np.random.Generator) -> str:
    known = LAND_CLASSES[number]
    if number in _VAGUE_OF and rng.random() < VAGUELY:
        return _VAGUE_OF[number]
    return known.name if rng.random() < FIRST_NAME else str(rng.choice(known.synonyms))


def write_captions(shares: Floats, seed: int) -> list[Caption]:
    """Captions of N tiles, each from random numbers of its own: those of the first tiles do not depend on N.

    Args:
        shares: share of each class in every tile, [N, K].
        seed: seed of the annotator.
    """
    return [say(share, np.random.default_rng((seed, 5, i))) for i, share in enumerate(shares)]


def quality(captions: Sequence[Caption], shares: Floats) -> dict[str, Any]:
    """What is missing and wrong in captions of tiles with these shares [N, K]."""
    named = np.zeros(shares.shape, dtype=bool)
    for row, caption in zip(named, captions, strict=True):
        row[list(caption.named)] = True
    there = shares >= 0.05
    return {
        'different_captions': len({c.text for c in captions}),
        'classes_named': round(float(named.sum(1).mean()), 3),
        'of_one_class_only': round(float((named.sum(1) == 1).mean()), 3),
        'named_but_not_there': round(float((named & (shares == 0)).sum() / named.sum()), 3),
        'there_but_not_named': round(float((there & ~named).sum() / there.sum()), 3),
        'classes_ever_named': int(named.any(0).sum()),
    }
