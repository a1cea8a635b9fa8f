"""Batches follow from the step, whoever asks, and carry what the settings say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyproj import Geod

from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.errors import GrafalignError
from grafalign.geo import EARTH_RADIUS_M
from grafalign.store import PairStore
from grafalign.training import objective
from grafalign.training.data import Batch, PairSteps, Share
from grafalign.training.gather_data import bank_rows
from grafalign.training.near import Neighbours
from tests.training_world import gradient, settings, start

WILD = {
    'augment': {'turn': True, 'zoom': 1.5, 'shift': 0.2, 'haze': 0.3, 'band_dropout': 0.3},
    'negatives': {'bank': 50},
    'masks': {'same_tile': True},
    'patch_dropout': 0.5,
}


def steps(store: PairStore, bank: PhotoBank, clip: FrozenClip, *args: object, **changes: object) -> PairSteps:
    """Steps of ten tiles with up to four photos."""
    wanted = settings(store, clip, batch_tiles=10, seed=3, **changes)
    return PairSteps.of_store(store, bank, wanted, *args, side=4)  # type: ignore[arg-type]


def equal(one: Batch, two: Batch) -> bool:
    """Whether two batches are equal in every bit."""
    return all(torch.equal(torch.nan_to_num(v), torch.nan_to_num(two[k])) for k, v in one.items())  # type: ignore


def test_an_epoch_visits_every_tile_once(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """An epoch holds each training tile exactly once, its last batch being smaller, in a new order each time."""
    data = steps(store, bank, clip)
    orders = []
    for epoch in (0, 1):
        plans = [data._plan(epoch * data.steps_per_epoch + i) for i in range(data.steps_per_epoch)]
        order = np.concatenate([p.tiles for p in plans])
        assert np.array_equal(np.sort(order), np.arange(len(data.tiles)))
        assert {len(p.tiles) for p in plans[:-1]} == {10}
        orders.append(order.tolist())
    assert orders[0] != orders[1]


def test_a_step_is_the_same_whenever_it_is_asked_for(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """A batch depends on its number alone, with everything that is random switched on."""
    first, again = steps(store, bank, clip, **WILD), steps(store, bank, clip, **WILD)
    for number in (7, 3, 7):
        assert equal(first[number], again[number])


@pytest.mark.parametrize('processes', [1, 3])
def test_shares_and_micro_batches_make_the_whole_batch(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, processes: int
) -> None:
    """Tiles and pairs of all processes and micro-batches are those of one process, each once, in short batches too."""
    whole = steps(store, bank, clip, **WILD)
    for step in (0, whole.steps_per_epoch - 1):
        one = whole[step]
        pixels, photos = [], []
        for rank in range(processes):
            mine = steps(store, bank, clip, Share(rank, processes), 3, **WILD)
            for number in range(mine.micro_batches):
                batch = mine[step * mine.micro_batches + number]
                assert torch.equal(batch['candidates'], one['candidates'])
                pixels += list(batch['pixels'][: len(torch.unique(batch['tile']))])
                photos.append(batch['photo'])
        assert torch.equal(torch.stack(pixels), one['pixels']) and torch.equal(torch.cat(photos), one['photo'])


def test_weights_are_one_over_tiles_and_photos(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """The pairs of a tile weigh 1/B together, however many photos it has, also where a crop has lost some."""
    for changes in ({}, WILD):
        batch = steps(store, bank, clip, **changes)[2]
        each = torch.zeros(len(batch['pixels'])).index_add_(0, batch['tile'], batch['weight'])
        torch.testing.assert_close(each, torch.full_like(each, 1 / len(each)))


def test_places_stay_inside_the_view(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """Photos that a crop has lost are left out, and no tile loses all of them."""
    data = steps(store, bank, clip, **{**WILD, 'augment': {'zoom': 3.0, 'shift': 0.5}})
    fewer = 0
    for step in range(10):
        batch, plain = data[step], steps(store, bank, clip)[step]
        assert all(bool(((batch[k] >= 0) & (batch[k] < 64)).all()) for k in ('row', 'col'))  # type: ignore
        assert len(torch.unique(batch['tile'])) == len(batch['pixels'])
        fewer += len(plain['tile']) - len(batch['tile'])
    assert fewer > 0


def test_negatives_are_other_training_photos(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """K rows of the bank besides the batch's own, each once, valid, of training tiles; `all` are all of them."""
    mine = set(steps(store, bank, clip)._candidates['photos'].tolist())
    for wanted in (7, 10**6, 'all'):
        batch = steps(store, bank, clip, negatives={'bank': wanted})[4]
        rows = batch['candidates'].tolist()
        own = {rows[k] for k in batch['photo'].tolist()}
        assert len(set(rows)) == len(rows) and set(rows) <= mine
        assert set(rows[: len(own)]) == own
        assert len(rows) == (len(own) + 7 if wanted == 7 else len(mine))


def test_photos_of_the_same_tile_are_listed(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """All photos of a tile that are among the candidates, whether drawn for this step or not."""
    data = steps(store, bank, clip, negatives={'bank': 'all'}, masks={'same_tile': True}, photos_per_tile=1)
    batch, plan = data[1], data._plan(1)
    pairs = store.pairs
    for tile in range(10):
        photos = pairs[pairs['tile'] == data.tiles[plan.tiles[tile]]]['photo']
        expected = set(photos[bank.valid[photos]])
        listed = batch['candidates'][batch['listed'][1][batch['listed'][0] == tile]].tolist()
        assert set(listed) == expected and len(listed) == len(expected)


@pytest.mark.parametrize('photos_without_place', [0, 7])
def test_candidates_near_a_photo_are_those_of_a_naive_loop(
    photos_without_place: int, store: PairStore, bank: PhotoBank, clip: FrozenClip
) -> None:
    """By distances along the globe, which at these lengths are those through it; photos of unknown place are far."""
    data = steps(store, bank, clip, negatives={'bank': 'all'}, masks={'within_m': 60})
    assert data._places is not None
    unknown = np.random.default_rng(0).choice(len(store.photos), photos_without_place, replace=False)
    data._places[unknown] = np.nan
    batch = data[1]
    rows = batch['candidates'].numpy()
    points = store.photos.geometry
    lon, lat = points.x.to_numpy()[rows], points.y.to_numpy()[rows]
    expected = set()
    for pair, photo in enumerate(batch['photo'].tolist()):
        _, _, metres = Geod(a=EARTH_RADIUS_M, b=EARTH_RADIUS_M).inv(
            lon[photo] + 0 * lon, lat[photo] + 0 * lat, lon, lat
        )
        placed = ~np.isin(rows, unknown) & (rows[photo] not in unknown)
        expected |= {(pair, int(k)) for k in np.flatnonzero((metres < 60) & placed)}
    assert set(zip(*batch['near'].tolist(), strict=True)) == expected
    assert len(expected) == batch['near'].shape[1] > len(batch['photo']) - photos_without_place


@pytest.mark.parametrize(('candidates', 'photos'), [([5, 6], [0]), ([0, 1, 5], [2]), ([0, 1, 5], []), ([2, 5], [0, 1])])
def test_texts_and_photos_of_unknown_place_are_near_nothing(candidates: list[int], photos: list[int]) -> None:
    """Rows 0 and 1 are photos 3 m apart, 2 a photo of unknown place, 5 and 6 texts."""
    places = np.array([[0.0, 0, 0], [3, 0, 0], [np.nan] * 3])
    near = Neighbours(np.array(candidates), places).of(np.array(photos, dtype=np.int64), 5)
    assert near.shape == (2, 0) and near.dtype == np.int64


def test_both_levels_and_all_micro_batches_look_candidates_up_once(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and its gradient are those of looking them up block by block, to the last bit."""
    counted = Lookups(bank_rows(bank, torch.device('cpu')))
    wanted = settings(store, clip, level='both', negatives={'bank': 60}, masks={'within_m': 60, 'closer_than': 0.9})
    task = start(store, bank, clip, wanted)
    task._bank = [counted]  # type: ignore[list-item]
    whole = gradient(task, store, bank, wanted, micro_batch=5)
    assert counted.times == 1
    monkeypatch.setattr(objective, '_LOOKED_UP', 0)
    task._looked_up = None
    blocks = gradient(task, store, bank, wanted, micro_batch=5)
    assert counted.times > 6 and torch.equal(whole[0], blocks[0])
    assert all(torch.equal(whole[1][name], blocks[1][name]) for name in blocks[1])


class Lookups:
    """A bank that counts how often it is asked."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.device, self.times = rows, rows.device, 0

    def __getitem__(self, which: torch.Tensor) -> torch.Tensor:
        self.times += 1
        return self.rows[which]


def test_bands_come_in_the_order_asked_for(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """A choice of bands takes those planes; a band that the store lacks is named."""
    two, all_of_them = steps(store, bank, clip, bands=('blue', 'red'))[0], steps(store, bank, clip)[0]
    assert np.array_equal(two['pixels'], all_of_them['pixels'].numpy()[:, [2, 0]])
    with pytest.raises(GrafalignError, match='nir'):
        steps(store, bank, clip, bands=('red', 'nir'))


def test_pixels_travel_as_they_are_stored(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """Sixteen bits on disk are sixteen bits on the way to the device."""
    assert store.read_tile(0).dtype == np.uint16
    assert steps(store, bank, clip)[0]['pixels'].dtype == torch.uint16


def test_a_tile_that_cannot_be_read_is_left_out_and_named(own_store: Path, bank: PhotoBank, clip: FrozenClip) -> None:
    """Its pairs are gone, the others keep their weights, and it is told which tile it was."""
    held = PairStore(own_store)
    data = steps(held, bank, clip)
    before = data[0]
    number = int(data._plan(0).tiles[3])
    row = int(data.tiles[number])
    with (own_store / held.tiles['shard'].iloc[row]).open('r+b') as file:
        file.seek(int(held.tiles['byte_offset'].iloc[row]))
        file.write(b'nonsense')
    after = data[0]
    assert after['bad'].tolist() == [number] and data.name_tiles([number]) == [held.tiles['tile_id'].iloc[row]]
    assert 3 in before['tile'] and 3 not in after['tile'] and not after['pixels'][3].any()
    for batch, missing in ((before, []), (after, [3])):
        each = torch.zeros(10).index_add_(0, batch['tile'], batch['weight'])
        expected = torch.full((10,), 0.1)
        expected[missing] = 0
        torch.testing.assert_close(each, expected)


def test_a_split_without_tiles_is_named(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """A store whose split is empty ends in one sentence."""
    with pytest.raises(GrafalignError, match=r'no holdout tile with a usable photo; check `split.shares`'):
        PairSteps.of_store(store, bank, settings(store, clip), split='holdout')
