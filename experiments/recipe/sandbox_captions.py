"""What captions of sandbox tiles say beside the truth: the closed vocabulary of the 24 classes, and CHAIR over it.

CHAIR (Rohrbach et al. 2018): of the things that a caption names, the share that is not in the image (CHAIR_i), and the
share of captions that name such a thing (CHAIR_s). A vague word (`trees`) is right if any of its classes is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.captions.annotator import VAGUE
from experiments.captions.places import class_shares
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.sandbox.classes import CLASS_ID, LAND_CLASSES
from grafalign.store import PairStore


def vocabulary() -> dict[str, frozenset[int]]:
    """Every word for a class, with the classes that it may mean."""
    found = {word: frozenset({CLASS_ID[c.name]}) for c in LAND_CLASSES for word in (c.name, *c.synonyms)}
    for word, names in VAGUE.items():
        found[word] = found.get(word, frozenset()) | {CLASS_ID[name] for name in names}
    return found


_WORDS = vocabulary()
_PATTERN = re.compile(r'\b(' + '|'.join(re.escape(w) for w in sorted(_WORDS, key=len, reverse=True)) + r')\b')


def named(text: str) -> list[frozenset[int]]:
    """The classes that each word of a text may mean, the longest reading of each place.

    Example:
        >>> [sorted(LAND_CLASSES[c].name for c in meant) for meant in named('a photo of pine forest and a lake.')]
        [['conifer forest'], ['water']]
    """
    return [_WORDS[match[1]] for match in _PATTERN.finditer(text)]


def chair(texts: Sequence[str], shares: npt.NDArray[np.floating]) -> dict[str, float]:
    """CHAIR_i, CHAIR_s, things named a caption, and the share of captions that name what strikes most.

    Args:
        texts: one of each tile.
        shares: share of each class in it, [N, K].
    """
    things = wrong = with_wrong = largest = 0
    for text, share in zip(texts, shares, strict=True):
        meant = named(text)
        false = [m for m in meant if not any(share[c] > 0 for c in m)]
        things, wrong, with_wrong = things + len(meant), wrong + len(false), with_wrong + bool(false)
        largest += any(int(share.argmax()) in m for m in meant)
    return {
        'chair_i': wrong / max(1, things),
        'chair_s': with_wrong / len(texts),
        'named': things / len(texts),
        'names_the_largest': largest / len(texts),
    }


def shares_of_tiles(world: Path) -> npt.NDArray[np.float32]:
    """Share of each class in every tile of a world's pair store, [N, K]."""
    kept = world / 'tile_shares.npy'
    if not kept.is_file():
        store = PairStore(world / 'pairs')
        truth = SandboxTruth(world / 'sandbox', store)
        grid, rows = truth.recipe.grid, store.tiles
        boxes = [grid.geobox(int(e), t[2], t[5]) for e, t in zip(rows['epsg'], rows['transform'], strict=True)]
        np.save(kept, class_shares(truth.label_maps(boxes), len(truth.classes)))
    return np.load(kept)
