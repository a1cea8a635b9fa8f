"""The shuffle that is never written down."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grafalign.training.order import shuffled


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_every_item_comes_exactly_once(count: int, seed: int, epoch: int) -> None:
    """All positions together give all items, each once, whatever their number and the key."""
    items = shuffled(np.arange(count), count, (seed, epoch))
    assert np.array_equal(np.sort(items), np.arange(count))


@given(st.integers(1, 10**12), st.integers(0, 2**31), st.data())
def test_a_position_can_be_asked_for_alone(count: int, seed: int, data: st.DataObject) -> None:
    """The item at a position does not depend on what else is asked for, and lies among the items."""
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    together = shuffled(positions, count, (seed,))
    alone = [int(shuffled(positions[i : i + 1], count, (seed,))[0]) for i in range(len(positions))]
    assert together.tolist() == alone and min(alone) >= 0 and max(alone) < count


def test_it_mixes_like_a_shuffle() -> None:
    """Over many epochs every item comes to every tenth of the epoch about equally often, and neighbours part."""
    count, epochs = 1000, 400
    where = np.zeros((count, 10))
    steps = []
    for epoch in range(epochs):
        order = shuffled(np.arange(count), count, (7, epoch))
        where[order, np.arange(count) * 10 // count] += 1
        steps.append(np.abs(np.diff(order)).mean())
    chi = ((where - epochs / 10) ** 2 / (epochs / 10)).sum() / (count * 9)
    assert 0.95 < chi < 1.05  # 1 for a true shuffle, with a standard deviation of 0.015
    assert abs(np.mean(steps) - count / 3) < 3
