"""Tiles to be captioned, with the true share of each class: cut once for every world and kept beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.labels import VOID
from grafalign.store import PairStore

MOST = 10_000
_CHUNK = 1000


@dataclass(frozen=True)
class SharedTiles:
    """N tiles in random order."""

    pixels: npt.NDArray[np.generic]
    """As stored, [N, C, S, S]."""
    scale: npt.NDArray[np.float32]
    """[N, C]"""
    offset: npt.NDArray[np.float32]
    """[N, C]"""
    shares: npt.NDArray[np.float32]
    """Share of each class among the pixels that have one, [N, K]."""

    def first(self, count: int) -> SharedTiles:
        """The first `count` tiles."""
        return SharedTiles(*(v[:count] for v in vars(self).values()))


def tiles_to_caption(world: Path, seed: int, places: str) -> SharedTiles:
    """Tiles of the training blocks of a world, in an order that is random: fewer captions are the first of more.

    Args:
        world: folder with `sandbox/` and `pairs/`.
        seed: seed of the places.
        places: `random`: `MOST` places anywhere in the training blocks. The blocks have room for fewer than
            2,000 tiles side by side, so these overlap. `photographed`: the tiles that the photo runs train on.
    """
    kept = world / f'captioned_{places}.npz'
    if not kept.exists():
        store = PairStore(world / 'pairs')
        truth = SandboxTruth(world / 'sandbox', store)
        tiles = _random_places(truth, seed) if places == 'random' else _photographed(truth, store, seed)
        part = world / f'.captioned_{places}.npz'
        np.savez(part, **vars(tiles))
        part.replace(kept)
    with np.load(kept) as arrays:
        return SharedTiles(*(arrays[k] for k in ('pixels', 'scale', 'offset', 'shares')))


def class_shares(labels: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.float32]:
    """Share of each class in label maps [N, S, S], pixels without a class aside: [N, K]."""
    counts = np.stack([np.bincount(m.ravel(), minlength=VOID + 1)[:classes] for m in labels]).astype(np.float32)
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1), dtype=np.float32)


def _random_places(truth: SandboxTruth, seed: int) -> SharedTiles:
    """Like `SandboxTruth.chips`, as large as tiles and free to overlap."""
    rng = np.random.default_rng((seed, 13))
    grid = truth.recipe.grid
    height, width = truth.raster.shape
    x, y = truth.transform @ (rng.uniform(0, width, 4 * MOST), rng.uniform(0, height, 4 * MOST))
    inside = np.flatnonzero(truth._split(x, y, grid) == 'train')
    parts: list[SharedTiles] = []
    start = 0
    while sum(len(p.shares) for p in parts) < MOST and start < len(inside):
        here = inside[start : start + _CHUNK]  # in parts, as label maps take eight bytes a pixel
        found = truth._cut(x[here], y[here], grid, None, rng)
        parts.append(_with_shares(found, len(truth.classes)))
        start += _CHUNK
    return SharedTiles(*(np.concatenate([getattr(p, k) for p in parts]) for k in vars(parts[0]))).first(MOST)


def _photographed(truth: SandboxTruth, store: PairStore, seed: int) -> SharedTiles:
    rows = np.random.default_rng((seed, 17)).permutation(store.tiles_of('train'))
    tiles = store.tiles.iloc[rows]
    grid = truth.recipe.grid
    boxes = [grid.geobox(int(e), t[2], t[5]) for e, t in zip(tiles['epsg'], tiles['transform'], strict=True)]
    scale, offset = store.radiometry
    pixels = np.stack([store.read_tile(int(i)) for i in rows])
    shares = class_shares(truth.label_maps(boxes), len(truth.classes))
    return SharedTiles(pixels, scale[rows], offset[rows], shares)


def _with_shares(tiles: LabelledTiles, classes: int) -> SharedTiles:
    return SharedTiles(tiles.pixels, tiles.scale, tiles.offset, class_shares(tiles.labels, classes))
