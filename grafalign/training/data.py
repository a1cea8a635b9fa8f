"""Batches: which tiles and photos each step sees, decided by the step's number alone.

The order of an epoch is a permutation drawn from (seed, epoch), and a step's augmentation from (seed, step), so the
place in a training is one integer: resuming is exact and immediate. Every process of a distributed run knows the whole
batch and reads the pixels of its own tiles only; the photos of the *whole* batch come from the memory-mapped bank, so
all processes see the same negatives without talking to each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from grafalign.encoders import GroundBank
from grafalign.errors import GrafalignError
from grafalign.store import PairStore


class Batch(TypedDict):
    """One process's share of a step: b of the batch's B tiles, and all P photos of the batch."""

    pixels: Tensor
    """As stored, [b, C, H, W]."""
    scale: Tensor
    """[b, C]"""
    offset: Tensor
    """[b, C]"""
    symmetry: Tensor
    """int64 [b]"""
    gain: Tensor
    """[b, C]"""
    photos: Tensor
    """[P, D]"""
    tile: Tensor
    """Tile (0 to b - 1) of each pair of this share, int64 [N]."""
    photo: Tensor
    """Row of `photos` of each pair, int64 [N]."""
    row: Tensor
    """Position in the tile in pixels, [N]."""
    col: Tensor
    weight: Tensor
    """1 / (B N_i) times the number of processes, so that the mean over processes is the whole batch's loss, [N]."""


@dataclass(frozen=True)
class Share:
    """Which process of how many."""

    rank: int = 0
    world: int = 1


class PairSteps(Dataset[Batch]):
    """The steps of a training; item k is step k.

    Args:
        store: the pair store.
        bank: its ground bank.
        split: tiles of this split.
        batch_tiles: B.
        photos_per_tile: at most this many photos of a tile in a step, drawn anew each time.
        seed: seed of order and augmentation.
        augment: whether to flip, turn and jitter.
        gain: standard deviation of the brightness jitter; half as much again per band.
        share: this process's share.

    Raises:
        GrafalignError: the split has no tile with a usable photo.
    """

    def __init__(
        self,
        store: PairStore,
        bank: GroundBank,
        split: str,
        batch_tiles: int,
        photos_per_tile: int,
        seed: int,
        augment: bool = True,
        gain: float = 0.1,
        share: Share | None = None,
    ) -> None:
        self.store, self.bank, self.seed = store, bank, seed
        self.batch_tiles, self.photos_per_tile = batch_tiles, photos_per_tile
        self.augment, self.gain, self.share = augment, gain, share or Share()
        pairs = store.pairs
        usable = bank.valid[pairs['photo'].to_numpy()] & np.isin(pairs['tile'].to_numpy(), store.tiles_of(split))
        pairs = pairs[usable].sort_values('tile', kind='stable')
        self._photo = pairs['photo'].to_numpy()
        self._position = pairs[['row', 'col']].to_numpy(dtype=np.float32)
        self.tiles, self._first = np.unique(pairs['tile'].to_numpy(), return_index=True)
        self._last = np.append(self._first[1:], len(pairs))
        if not len(self.tiles):
            raise GrafalignError(
                f'{store.path} has no {split} tile with a usable photo; check `split.shares` of its recipe.'
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the tiles, the last one perhaps smaller."""
        return -(-len(self.tiles) // self.batch_tiles)

    def __len__(self) -> int:
        return 2**31 - 1  # steps never run out: epochs follow each other

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.tiles))
        chosen = order[place * self.batch_tiles : (place + 1) * self.batch_tiles]
        rng = np.random.default_rng((self.seed, 1, step))
        bands = len(self.store.sensor.bands)
        if self.augment:
            which = rng.integers(0, 8, len(chosen))
            gain = 1 + self.gain * (rng.normal(size=(len(chosen), 1)) + 0.5 * rng.normal(size=(len(chosen), bands)))
        else:
            which, gain = np.zeros(len(chosen), dtype=np.int64), np.ones((len(chosen), bands))
        rows, owners = [], []
        for number, tile in enumerate(chosen):
            here = np.arange(self._first[tile], self._last[tile])
            if len(here) > self.photos_per_tile:
                here = rng.permutation(here)[: self.photos_per_tile]
            rows.append(here)
            owners.append(np.full(len(here), number))
        pair, owner = np.concatenate(rows), np.concatenate(owners)
        mine = np.arange(self.share.rank, len(chosen), self.share.world)  # a share may be empty in the last batch
        weight = self.share.world / (len(chosen) * np.bincount(owner)[owner])
        own = np.isin(owner, mine)
        local = np.full(len(chosen), -1)
        local[mine] = np.arange(len(mine))
        numbers = self.tiles[chosen[mine]]
        scale, offset = self.store.radiometry
        size = self.store.sensor.size_px
        pixels = [self.store.read_tile(int(i)) for i in numbers]
        stacked = np.stack(pixels) if pixels else np.zeros((0, bands, size, size), dtype=np.uint8)
        if stacked.dtype == np.uint16:
            stacked = stacked.astype(np.int32)  # torch has few operations on uint16
        return Batch(
            pixels=torch.from_numpy(stacked),
            scale=torch.from_numpy(scale[numbers]),
            offset=torch.from_numpy(offset[numbers]),
            symmetry=torch.from_numpy(which[mine]),
            gain=torch.from_numpy(gain[mine].astype(np.float32)),
            photos=torch.from_numpy(self.bank.embeddings[self._photo[pair]].astype(np.float32)),
            tile=torch.from_numpy(local[owner[own]]),
            photo=torch.from_numpy(np.flatnonzero(own)),
            row=torch.from_numpy(self._position[pair[own], 0]),
            col=torch.from_numpy(self._position[pair[own], 1]),
            weight=torch.from_numpy(weight[own].astype(np.float32)),
        )
