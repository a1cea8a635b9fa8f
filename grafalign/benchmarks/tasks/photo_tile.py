"""Ground photos and the tiles that hold them, both ways, among the photos and tiles of one split of a pair store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.statistics import Mean, Statistic
from grafalign.benchmarks.tasks.outcome import Outcome
from grafalign.datasets import ImageSet
from grafalign.datasets.tree import Tree
from grafalign.encoders.bank import open_bank
from grafalign.errors import InputError, StaleError
from grafalign.models import Model
from grafalign.retrieval import hits_at, positive_ranks
from grafalign.search.sources import open_source
from grafalign.store import PairStore

KS = (1, 5, 10)


def open_pairs(path: str, split: str) -> ImageSet:
    """Tiles of a split as a set; its `name` is the store's.

    Raises:
        GrafalignError: it is no store, or the split is empty.
    """
    store = PairStore(path)
    source = open_source(path)
    rows = store.tiles_of(split)
    if not len(rows):
        there = ', '.join(
            f'{n} ({len(store.tiles_of(n))} tiles)' for n in ('train', 'val', 'test') if len(store.tiles_of(n))
        )
        raise InputError(f'{path} has no tile of the split {split}; it has {there or "none at all"}.')
    centre = store.tiles.geometry.iloc[rows].representative_point()
    places = np.stack([centre.x, centre.y], axis=1)
    return ImageSet(
        Path(path).name,
        split,
        source.items['item_id'].iloc[rows].tolist(),
        lambda row: source.read(int(rows[row])),
        source.bands,
        source.value_range,
        lonlat=lambda: places,
        state=lambda: store.digest,
    )


def photos_state(path: str) -> str:
    """Changes when the photo bank of a store does, or what was left out of it."""
    if not Path(path).is_dir():
        raise InputError(f'{path} is not on this machine; give a local store, beside whose tiles its bank lies.')
    return Tree(Path(path)).state(['bank/bank.json', 'bank/photos.parquet', 'bank/filtered.parquet'])


def retrieve_photos(tiles: npt.NDArray[np.float32], data: ImageSet, path: str, model: Model) -> Outcome:
    """Recall at 1, 5 and 10 of a tile's photos and of a photo's tiles.

    Args:
        tiles: unit embeddings [N, D] of the tiles of `data`.
        data: from `open_pairs`.
        path: the store; its photo bank must be that of the model's CLIP.
        model: tells which CLIP.

    Raises:
        GrafalignError: the bank is missing or of another CLIP.
    """
    store = PairStore(path)
    if model.clip_digest is None:
        raise InputError(
            f'{model.name} does not say whose photo embeddings lie in its space; give the run itself, not its export.'
        )
    bank = open_bank(store)
    if bank.clip_digest != model.clip_digest:
        raise StaleError(
            f"The photo bank of {path} is of another CLIP than {model.name}'s; embed the photos with that one."
        )
    rows = store.tiles_of(data.split)
    pairs = store.pairs
    kept = pairs[np.isin(pairs['tile'], rows) & bank.valid[pairs['photo']]]
    if kept.empty:
        raise InputError(f'{path}: no photo of the split {data.split} could be read; there is nothing to find.')
    photos, photo = np.unique(kept['photo'], return_inverse=True)
    tile = np.searchsorted(rows, kept['tile'])
    vectors = np.asarray(bank.embeddings[photos], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    to_photo = positive_ranks(tiles, vectors, tile, photo, best_only=True)
    to_tile = positive_ranks(vectors, tiles, photo, tile, best_only=True)
    owner = np.full(len(photos), len(tiles), dtype=np.int64)
    np.minimum.at(owner, photo, tile)
    per_tile = np.bincount(owner, minlength=len(tiles)).astype(np.float64)
    with_photos = np.zeros(len(tiles))
    query_rows = to_photo.query[to_photo.first]
    with_photos[query_rows] = 1.0
    statistics: dict[str, Statistic] = {}
    for k in KS:
        hits = np.zeros(len(tiles))
        hits[query_rows] = hits_at(to_photo, k)
        statistics[f'tile_to_photo_r@{k}'] = Mean(hits, with_photos)
    for k in KS:
        found = np.bincount(owner, weights=hits_at(to_tile, k), minlength=len(tiles)).astype(np.float64)
        statistics[f'photo_to_tile_r@{k}'] = Mean(found, per_tile)
    return Outcome(statistics, 'photo_to_tile_r@10', {}, {'photos': len(photos), 'pairs': len(kept)})
