"""A shuffle of any number of items that is never written down: the item at a position is computed from the position.

A Feistel network (Luby & Rackoff 1988) over the smallest square of a power of two that holds all items is a permutation
of that square; positions that land outside the items are sent through it again until they land inside ("cycle
walking", Black & Rogaway 2002). Every item comes exactly once, any position can be asked for at once, and ten million
items cost no memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
_GOLDEN, _M1, _M2 = (np.uint64(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def shuffled(positions: npt.NDArray[np.int64], count: int, key: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Items at some positions of a shuffle of `count` items.

    Args:
        positions: positions in [0, count), any shape.
        count: number of items.
        key: what tells one shuffle from another (seed, epoch, ...), non-negative.

    Returns:
        Items in [0, count), in the shape of `positions`; all positions together give every item once.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    items = _permute(np.asarray(positions, dtype=np.uint64), half, keys)
    outside = items >= count
    while outside.any():
        items[outside] = _permute(items[outside], half, keys)
        outside = items >= count
    return items.astype(np.int64)


def _permute(values: npt.NDArray[np.uint64], half: np.uint64, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << half) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over='ignore'):
        z = values * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _M1
        z = (z ^ (z >> np.uint64(27))) * _M2
    return z ^ (z >> np.uint64(31))
