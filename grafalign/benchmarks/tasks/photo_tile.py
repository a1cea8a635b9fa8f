"""Ground photos and the tiles that hold them, both ways, among the photos and tiles of one split of a pair store.

Recall as the code of CVUSA's and VIGOR's authors and followers counts it: at 1, 5, 10 and a hundredth of what is
searched among, rounded down, plus one (`int(0.01 * n) + 1`; University-1652 rounds to the nearest). Average precision
as in University-1652's own code, whose precision between two positives is the mean of that before and at the later one
(Zheng et al. 2020). VIGOR's hit rate, for which a tile that shows the photo's place besides the one that is to be found
(`role` `semi`) is no mistake. Ties by chance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign import console
from grafalign.benchmarks.statistics import Mean, Statistic
from grafalign.benchmarks.tasks.outcome import Outcome
from grafalign.datasets import ImageSet
from grafalign.datasets.tree import Tree
from grafalign.encoders.bank import open_bank
from grafalign.errors import InputError, StaleError
from grafalign.models import Model
from grafalign.retrieval import Ranks, hits_at, positive_ranks
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
    places = np.stack([centre.x, centre.y], axis=1) if centre.notna().all() else None
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
    if bank.left_out():
        console.log(f'{path}: {bank.left_out()}')
    rows = store.tiles_of(data.split)
    pairs = store.pairs
    kept = pairs[np.isin(pairs['tile'], rows) & bank.valid[pairs['photo']]]
    if kept.empty:
        raise InputError(f'{path}: no photo of the split {data.split} could be read; there is nothing to find.')
    role = kept['role'].to_numpy(dtype=object) if 'role' in kept else np.full(len(kept), 'pair', dtype=object)
    photos, photo = np.unique(kept['photo'], return_inverse=True)
    tile = np.searchsorted(rows, kept['tile'])
    vectors = np.asarray(bank.embeddings[photos], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked, also = role == 'pair', role != 'gallery'
    if not asked.any():
        raise InputError(f'{path}: no pair of the split {data.split} has the role `pair`; there is nothing to find.')
    owner = np.full(len(photos), len(tiles), dtype=np.int64)
    np.minimum.at(owner, photo[asked], tile[asked])
    statistics: dict[str, Statistic] = {}
    to_photo = positive_ranks(tiles, vectors, tile[asked], photo[asked])
    to_tile = positive_ranks(vectors, tiles, photo[asked], tile[asked])

    def of_tiles(values: npt.NDArray[np.float64]) -> Statistic:
        mine, ones = np.zeros(len(tiles)), np.zeros(len(tiles))
        mine[to_photo.query[to_photo.first]], ones[to_photo.query[to_photo.first]] = values, 1.0
        return Mean(mine, ones)

    def of_photos(values: npt.NDArray[np.float64]) -> Statistic:
        tile_of = owner[to_tile.query[to_tile.first]]
        sums = np.bincount(tile_of, weights=values, minlength=len(tiles)).astype(np.float64)
        return Mean(sums, np.bincount(tile_of, minlength=len(tiles)).astype(np.float64))

    for name, ranks, over, count in (
        ('tile_to_photo', to_photo, of_tiles, len(photos)),
        ('photo_to_tile', to_tile, of_photos, len(tiles)),
    ):
        for k in KS:
            statistics[f'{name}_r@{k}'] = over(hits_at(ranks, k))
        statistics[f'{name}_r@1%'] = over(hits_at(ranks, one_percent(count)))
        statistics[f'{name}_ap'] = over(trapezoid_precision(ranks))
    if (role == 'semi').any():
        both = positive_ranks(vectors, tiles, photo[also], tile[also])
        statistics['photo_to_tile_hit_rate'] = of_photos(_hit_rate(both, photo[asked], tile[asked]))
    return Outcome(statistics, 'photo_to_tile_r@10', {}, {'photos': len(photos), 'pairs': int(asked.sum())})


def one_percent(count: int) -> int:
    """How many of the first answers are a hundredth of what is searched among.

    Example: CVUSA's test set, as its followers count it.
        >>> one_percent(8884), one_percent(10)
        (89, 1)
    """
    return count // 100 + 1


def trapezoid_precision(ranks: Ranks) -> npt.NDArray[np.float64]:
    """Average precision of each query that has positives by the trapezoid rule, [Q'].

    With a positive number i (from 0) at place p (from 0, tied items count half): the mean over positives of
    ((i + 1) / (p + 1) + i / p) / 2, where i / p is 1 at the first place.

    Worked example: positives at the places 1 and 3 of a ranking that begins with 0 give
    ((1/2 + 0/1) / 2 + (2/4 + 1/3) / 2) / 2 = 1/3.
    """
    first = ranks.first
    if not len(first):
        return np.zeros(0)
    sizes = np.diff(np.append(first, len(ranks.query)))
    number = np.arange(len(ranks.query)) - np.repeat(first, sizes)
    place = number + ranks.above + ranks.tied / 2
    before = np.where(place > 0, number / np.maximum(place, 1e-9), 1.0)
    return np.asarray(np.add.reduceat(((number + 1) / (place + 1) + before) / 2, first) / sizes)


def _hit_rate(both: Ranks, photo: npt.NDArray[np.int64], tile: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Chance that nothing but tiles of a photo's place stands before its own one, for each photo that has one, [Q']."""
    own = np.isin(both.query * 2**32 + both.item, photo * 2**32 + tile)
    chance = np.where(both.above == 0, 1 / (both.tied + 1), 0.0)[own]
    query = both.query[own]
    best = np.zeros(int(query.max()) + 1)
    np.maximum.at(best, query, chance)
    return best[np.unique(query)]
