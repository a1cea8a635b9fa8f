"""The pair store: what is written is found again, by us and by anyone who reads tar files."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely

from grafalign.errors import GrafalignError
from grafalign.files import file_digest
from grafalign.geo import TileGrid, blocks_touched
from grafalign.pairing import Recipe, pair
from grafalign.pairing.splits import split_of_blocks
from grafalign.store import PairStore, ShardWriter


def test_a_tile_is_at_its_byte_offset(tmp_path: Path) -> None:
    """The bytes at the returned offset are the .npy, and a plain tar reader finds image and metadata in pairs."""
    pixels = [np.random.default_rng(i).integers(0, 60_000, (4, 9, 9)).astype(np.uint16) for i in range(3)]
    path = tmp_path / 'tiles' / '00000.tar'
    with ShardWriter(path) as writer:
        places = [writer.add(f't{i}', p, {'number': i}) for i, p in enumerate(pixels)]
    content = path.read_bytes()
    for (offset, nbytes), expected in zip(places, pixels, strict=True):
        assert (np.load(io.BytesIO(content[offset : offset + nbytes])) == expected).all()
    with tarfile.open(path) as tar:
        assert tar.getnames() == ['t0.npy', 't0.json', 't1.npy', 't1.json', 't2.npy', 't2.json']
        metadata = tar.extractfile('t2.json')
        assert metadata is not None and json.load(metadata) == {'number': 2}


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An exception inside the writer leaves neither the shard nor its part."""
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / 'tiles' / '00000.tar') as writer:
        writer.add('t', np.zeros((1, 2, 2)), {})
        raise RuntimeError
    assert list((tmp_path / 'tiles').iterdir()) == []


@pytest.mark.parametrize(
    ('at', 'content'),
    [(0, b'PK\x03\x04'), (0, b'nonsense'), (10, b'((('), (60, b'9'), (128, None)],
    ids=['another kind of file', 'no file at all', 'brackets', 'another shape', 'cut short'],
)
def test_a_damaged_tile_is_one_sentence(own_store: Path, at: int, content: bytes | None) -> None:
    """Whatever the bytes of a tile have become, the error names the shard and the tile."""
    tiles = PairStore(own_store).tiles
    shard, start = own_store / tiles['shard'].iloc[-1], int(tiles['byte_offset'].iloc[-1])
    with shard.open('r+b') as file:
        file.seek(start)
        header = file.read(128)
        where = header.index(b'(') + 1 if at == 60 else at
        file.seek(start + where)
        if content is None:
            file.truncate()
        else:
            file.write(content)
    with pytest.raises(GrafalignError, match=rf'{shard.name}: tile {len(tiles) - 1} cannot be read .*; the shard is'):
        PairStore(own_store).read_tile(len(tiles) - 1)


def test_stored_pixels_equal_an_independent_read(store: PairStore) -> None:
    """Tiles of the western zone are the scene's pixels exactly, read here by plain window arithmetic."""
    west = store.tiles[store.tiles['item_id'].str.endswith('_west') & (store.tiles['epsg'] == 32625)]
    items = Path(store.marker.recipe['scenes']['catalog']).parent / 'sandbox-ms'
    assert len(west) > 5
    for row in west.itertuples():
        for band, name in enumerate(store.sensor.bands):
            with rasterio.open(items / row.item_id / f'{row.item_id}_{name}.tif') as raster:
                col, line = (row.transform[2] - raster.transform.c) / 5, (raster.transform.f - row.transform[5]) / 5
                window = rasterio.windows.Window(int(col), int(line), 64, 64)
                expected = raster.read(1, window=window, boundless=True, fill_value=0)
            assert (store.read_tile(row.Index)[band] == expected).all()


def test_tables_agree_with_each_other(store: PairStore) -> None:
    """Ids are unique, pairs join existing tiles and photos, all of those have a pair, and counts are the summary's."""
    assert store.tiles['tile_id'].is_unique and store.photos['photo_id'].is_unique
    assert (store.pairs['tile'] >= 0).all() and (store.pairs['photo'] >= 0).all()
    assert set(store.pairs['tile']) == set(range(len(store.tiles)))
    assert set(store.pairs['photo']) == set(range(len(store.photos)))
    counts = store.marker.summary.model_dump()
    assert (counts['tiles'], counts['pairs']) == (len(store.tiles), len(store.pairs))
    assert counts['photos'] == counts['rejected'] + len(store.photos)
    assert (store.rejected['kind'] == 'photo').sum() == counts['rejected']


def test_no_photo_is_lost(store: PairStore) -> None:
    """Every photo of the source is either paired or rejected with a reason."""
    rejected = store.rejected[store.rejected['kind'] == 'photo']
    assert rejected['reason'].notna().all()
    assert len(set(store.photos['photo_id']) | set(rejected['id'])) == 480


def test_no_tile_touches_two_splits(store: PairStore) -> None:
    """Each tile's blocks all have the tile's split, and tiles of different splits do not overlap."""
    grid = TileGrid(store.sensor.size_px, store.sensor.gsd_m)
    split = store.marker.recipe['split']
    for row in store.tiles.itertuples():
        box = grid.bounds_lonlat(int(row.epsg), np.array([row.transform[2]]), np.array([row.transform[5]]))
        names = split_of_blocks(blocks_touched(*box, split['block_km']), split['shares'], 0)
        assert set(names.ravel()) == {row.split}
    shapes = {s: shapely.union_all(g.geometry.to_numpy()) for s, g in store.tiles.groupby('split')}
    assert len(shapes) > 1
    names = sorted(shapes)
    for a, b in itertools.pairwise(names):
        assert shapes[a].intersection(shapes[b]).area == 0


def test_the_store_is_the_same_with_any_number_of_workers(recipe: Recipe, store: PairStore, tmp_path: Path) -> None:
    """One worker writes byte for byte what the default number wrote."""
    pair(recipe, tmp_path / 'pairs', workers=1)
    for name in [*store.marker.files, 'dataset.json']:
        assert (tmp_path / 'pairs' / name).read_bytes() == (store.path / name).read_bytes(), name


def test_digests_are_those_of_the_files(store: PairStore) -> None:
    """dataset.json names every file of the store with its digest."""
    for name, digest in store.marker.files.items():
        assert file_digest(store.path / name) == digest
    assert {p.name for p in (store.path / 'tiles').iterdir()} == {
        Path(n).name for n in store.marker.files if 'tiles/' in n
    }


def test_days_apart_are_scene_minus_photo(store: PairStore) -> None:
    """days_apart is the scene's time less the photo's, in days."""
    pairs = store.pairs
    when = pd.to_datetime(store.tiles['datetime']).to_numpy()[pairs['tile']]
    taken = pd.to_datetime(store.photos['taken_at']).to_numpy()[pairs['photo']]
    expected = (when - taken) / pd.Timedelta(days=1)
    np.testing.assert_allclose(pairs['days_apart'], expected.astype(float), atol=1e-6)


def test_the_aerial_sensor_is_paired_by_the_same_code(recipe: Recipe, world: Path, tmp_path: Path) -> None:
    """uint8 scenes with all bands in one file give a uint8 store whose tiles have four bands."""
    settings = json.loads(recipe.model_dump_json())
    settings['scenes']['collections'] = ['sandbox-aerial']
    settings['sensor'] |= {'name': 'sandbox-aerial', 'bands': ['red', 'green', 'blue', 'nir'], 'value_range': [0, 255]}
    pair(Recipe.model_validate(settings), tmp_path / 'pairs')
    found = PairStore(tmp_path / 'pairs')
    tile = found.read_tile(0)
    assert tile.shape == (4, 64, 64) and tile.dtype == np.uint8
    assert (found.radiometry[0] == 1).all() and (found.radiometry[1] == 0).all()
