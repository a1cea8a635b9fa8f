"""Batches that a GPU has no room for are cut in halves; the GPU is played by a network that refuses larger ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grafalign.encoders.fitting import Fitting
from grafalign.errors import MachineError


class Small:
    """A network with room for so many inputs at a time; notes the sizes that it was called with."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        if len(inputs) > self.room:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')
        return inputs * 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_all_outputs_come_in_order_whatever_the_room(room: int, batches: list[int]) -> None:
    """Each batch gives what a network with room for all would, and what was too large is not tried again."""
    network = Small(room)
    fitting = Fitting(network, 'photos')
    for size in batches:
        inputs = torch.randn(size, 2)
        assert torch.equal(fitting(inputs), inputs * 3)
    refused = [size for size in network.sizes if size > room]
    assert len(refused) == len(set(refused)) and all(2 * b <= a for a, b in itertools.pairwise(refused))


def test_no_room_for_one_is_one_sentence() -> None:
    """It names what is embedded and what to do."""
    with pytest.raises(MachineError, match=r'no room for one of the photos; end what else runs on it, or hide it'):
        Fitting(Small(0), 'photos')(torch.zeros(5, 2))
