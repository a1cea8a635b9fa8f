"""The split of every tile: that of the blocks of the Earth it touches, and none where they disagree."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from grafalign import engine
from grafalign.geo import TileGrid, blocks_touched
from grafalign.pairing.zones import Floats, Ints, runs

_BLOCK_SHARE = 0.7
"""Share of a block's height that its width surely has, however the columns of its row are divided."""


def split_of_blocks(blocks: Ints, shares: dict[str, float], seed: int) -> npt.NDArray[np.object_]:
    """The split of every block, by a hash of its number: any shape in, the same shape of names out."""
    names = list(shares)
    edges = np.cumsum([shares[n] for n in names])
    unique, inverse = np.unique(blocks, return_inverse=True)
    key = seed.to_bytes(8, 'little', signed=True)
    draws = [
        int.from_bytes(hashlib.blake2b(int(b).to_bytes(8, 'little'), digest_size=8, key=key).digest(), 'little') / 2**64
        for b in unique
    ]
    picked = np.minimum(np.searchsorted(edges, draws, side='right'), len(names) - 1)
    return np.array(names, dtype=object)[picked][inverse].reshape(blocks.shape)


def splits_of_tiles(
    epsg: Ints,
    left: Floats,
    top: Floats,
    grid: TileGrid,
    block_km: float,
    shares: dict[str, float],
    seed: int,
    margin_m: float = 0.0,
) -> npt.NDArray[np.object_]:
    """The split of every tile with a margin around it, None where its blocks disagree.

    Args:
        epsg: zones of T tiles.
        left: metres, [T], with `top` the corner.
        top: metres, [T].
        grid: shape of the tiles.
        block_km: side of the blocks.
        shares: share of each split.
        seed: seed of the splits.
        margin_m: metres around a tile.
    """
    split = np.full(len(epsg), None, dtype=object)
    points = 1 + math.ceil((grid.side_m + 2 * margin_m) / (_BLOCK_SHARE * 1000 * block_km))
    order = np.argsort(epsg)

    def decide(zone: slice) -> None:
        tiles = order[zone]
        code = int(epsg[tiles[0]])
        blocks = blocks_touched(*grid.box_around(code, left[tiles], top[tiles], margin_m), block_km, points)
        doubtful = (blocks != blocks[:, :1]).any(axis=1)  # only near a block's edge the exact outline matters
        if doubtful.any():
            exact = grid.bounds_lonlat(code, left[tiles[doubtful]], top[tiles[doubtful]], margin_m)
            blocks[doubtful] = blocks_touched(*exact, block_km, points)
        names = split_of_blocks(blocks, shares, seed)
        agree = (names == names[:, :1]).all(axis=1)
        split[tiles[agree]] = names[agree, 0]

    for _ in engine.run(decide, (slice(*run) for run in runs(epsg[order]))):
        pass
    return split
