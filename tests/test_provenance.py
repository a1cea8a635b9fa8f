"""What a run keeps of its data: counts and sources that can be told to anybody."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import pytest

from grafalign.store import PairStore
from grafalign.training.provenance import NOT_STATED, describe_data, without_paths


def test_the_counts_are_those_of_the_tables(store: PairStore) -> None:
    """Tiles, pairs and different photos of each split add up to the tables."""
    data = describe_data(store)
    assert {n: c.tiles for n, c in data.splits.items()} == store.marker.summary.splits
    assert sum(c.pairs for c in data.splits.values()) == data.pairs == len(store.pairs)
    assert sum(c.photos for c in data.splits.values()) >= data.photos == len(store.photos)
    train = store.pairs[store.pairs['tile'].isin(store.tiles_of('train'))]
    assert data.splits['train'].photos == train['photo_id'].nunique()
    west, south, east, north = data.bounds
    assert west < store.photos.geometry.x.min() and store.photos.geometry.x.max() < east
    assert south < store.photos.geometry.y.min() and store.photos.geometry.y.max() < north
    assert data.photos_taken[0] <= data.photos_taken[1] and data.store_digest == store.digest


def test_licences_are_counted_and_missing_ones_are_said(own_store: Path) -> None:
    """Every photo counts once, the most frequent licence first; an empty one counts as not stated."""
    photos = gpd.read_parquet(own_store / 'photos.parquet')
    photos['licence'] = ['CC BY 4.0', '', None] + ['CC0 1.0'] * (len(photos) - 3)
    photos.to_parquet(own_store / 'photos.parquet')
    found = describe_data(PairStore(own_store)).licences
    assert list(found.items()) == [('CC0 1.0', len(photos) - 3), (NOT_STATED, 2), ('CC BY 4.0', 1)]


def test_no_path_of_this_machine_is_told(store: PairStore) -> None:
    """No folder of this machine is in it."""
    text = describe_data(store).model_dump_json()
    assert str(store.path.parent) not in text and str(Path.home()) not in text
    assert describe_data(store).recipe['photos']['folder'] == 'photos'


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        ('/data/photos.csv', 'photos.csv'),
        ('../up/photos', 'photos'),
        ('~/photos', 'photos'),
        ('C:\\photos\\a.csv', 'a.csv'),
        ('file:///data/a.csv', 'a.csv'),
        ('runs/photos', 'runs/photos'),
        ('https://me:secret@host/a.parquet?sig=key#x', 'https://host/a.parquet'),
        ('s3://bucket/photos', 's3://bucket/photos'),
        (['/a/b', {'root': '/c/d'}, 3, None], ['b', {'root': 'd'}, 3, None]),
    ],
)
def test_paths_keep_their_name_and_addresses_lose_their_keys(given: object, told: object) -> None:
    """Absolute paths become their last part, addresses lose user, query and fragment, all else stays."""
    assert without_paths(given) == told
