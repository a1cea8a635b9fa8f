"""Tables of pairs that others made become pair stores; what is wrong is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image

from grafalign.benchmarks.tasks.photo_tile import open_pairs
from grafalign.captions.sources.tiles import read_tiles
from grafalign.pairing.check import check_store
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training.near import earth_centred
from tests.commands import Command, contents, refused
from tests.made_pairs import make_table, picture, run


def test_a_table_becomes_a_store_that_checks(command: Command, tmp_path: Path) -> None:
    """Pixels are those of the files, photos stand in the middle, and a photo that is missing is rejected."""
    table = make_table(tmp_path)
    (tmp_path / 'ground' / '3.jpg').unlink()
    assert run(command, table, tmp_path / 'store')[0] == 0
    store = PairStore(tmp_path / 'store')
    assert not [f for f in check_store(store) if f.problems]
    assert (len(store.tiles), len(store.photos), len(store.pairs)) == (6, 11, 11)
    assert store.rejected[['id', 'reason']].to_numpy().tolist() == [['ground/3.jpg', 'file is missing']]
    for row, uri in enumerate(store.tiles['uri']):
        expected = np.moveaxis(np.asarray(Image.open(uri)), -1, 0)
        np.testing.assert_array_equal(store.read_tile(row), expected)
    assert (store.pairs[['row', 'col']] == 16).all().all()
    assert (store.sensor.gsd_m, store.sensor.size_px, store.sensor.bands) == (0.5, 32, ('red', 'green', 'blue'))
    split = store.tiles['split'].to_numpy()[store.pairs['tile']]
    assert pd.Series(split).groupby(store.pairs['photo_id'].to_numpy()).nunique().max() == 1


def test_the_same_command_makes_the_same_bytes_once(command: Command, tmp_path: Path) -> None:
    """A second run leaves the store; one into another folder gives the same bytes; other settings are refused."""
    table = make_table(tmp_path)
    for out in ('a', 'a', 'b'):
        assert run(command, table, tmp_path / out)[0] == 0
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    refused(run(command, table, tmp_path / 'a', '--seed', 1), 'holds another store')


def test_nothing_of_the_user_is_deleted_or_overwritten(command: Command, tmp_path: Path) -> None:
    """Neither pictures in a folder called tiles, nor a table of a name that a store has."""
    table = make_table(tmp_path / 'in')
    shutil.move(tmp_path / 'in' / 'above', tmp_path / 'in' / 'tiles')
    frame = pd.read_csv(table)
    frame['tile'] = frame['tile'].str.replace('above', 'tiles')
    table.unlink()
    frame.to_parquet(tmp_path / 'in' / 'pairs.parquet')
    before = contents(tmp_path / 'in')
    refused(run(command, tmp_path / 'in' / 'pairs.parquet', tmp_path / 'in'), 'holds', 'give a new folder')
    assert {k: v for k, v in contents(tmp_path / 'in').items() if k in before} == before
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / '.importing').touch()  # of an import that was killed
    (tmp_path / 'out' / 'tiles').mkdir()
    (tmp_path / 'out' / 'tiles' / '00009.tar').write_bytes(b'of before')
    assert run(command, tmp_path / 'in' / 'pairs.parquet', tmp_path / 'out')[0] == 0
    assert not [f for f in check_store(PairStore(tmp_path / 'out')) if f.problems]


def test_photos_that_are_all_outside_are_one_sentence(command: Command, tmp_path: Path) -> None:
    """As where row and column are of pictures of another size."""
    table = make_table(tmp_path, row=[500] * 12, col=[3] * 12)
    refused(run(command, table, tmp_path / 'a'), 'every photo lies outside its tile', 'ground/0.jpg at row 500')


def test_an_edited_table_is_another_store(command: Command, tmp_path: Path) -> None:
    """Nothing that was added is taken for done; the same table by another path, or moved, is the same store."""
    table = make_table(tmp_path / 'in')
    assert run(command, table, tmp_path / 'a')[0] == 0
    assert run(command, tmp_path / 'in' / '..' / 'in' / 'pairs.csv', tmp_path / 'a')[0] == 0
    shutil.move(tmp_path / 'in', tmp_path / 'moved')
    assert run(command, tmp_path / 'moved' / 'pairs.csv', tmp_path / 'a')[0] == 0
    with (tmp_path / 'moved' / 'pairs.csv').open('a') as file:
        file.write('ground/0.jpg,above/3.png,p3\n')
    refused(run(command, tmp_path / 'moved' / 'pairs.csv', tmp_path / 'a'), 'before it was changed')


def test_what_cannot_be_used_is_kept_with_its_reason(command: Command, tmp_path: Path) -> None:
    """Cells that are no numbers, positions that nobody has, times that were never, photos outside of their tile."""
    rows, cols = [np.nan] * 12, [np.nan] * 12
    rows[2], cols[2], rows[3], cols[3] = 99, 5, 31.9, 0
    lon, lat, taken = ['7.5'] * 12, ['46.5'] * 12, ['2021-05-06'] * 12
    lon[4], lon[5], lat[6], taken[8], lon[7], lat[7] = '7,5', 'n/a', '97', '0001-01-01', '0', '0.0'
    table = make_table(tmp_path, row=rows, col=cols, lon=lon, lat=lat, taken_at=taken)
    assert run(command, table, tmp_path / 'a')[0] == 0
    store = PairStore(tmp_path / 'a')
    found = {i: r for i, r in zip(store.rejected['id'], store.rejected['reason'], strict=True) if ' on ' not in i}
    assert {k: v for k, v in found.items() if k != 'ground/2.jpg'} == {
        'ground/4.jpg': 'lon is no number',
        'ground/6.jpg': 'impossible coordinates',
        'ground/7.jpg': 'position 0, 0',
        'ground/8.jpg': 'impossible time',
    }
    assert 'the photo is outside the tile' in set(store.rejected['reason'])
    assert store.photos.geometry[store.photos['photo_id'] == 'ground/5.jpg'].isna().all()  # unknown is no mistake
    assert not [f for f in check_store(store) if f.problems]
    make_table(tmp_path, taken_at=['03/04/2020'] * 12)
    refused(run(command, table, tmp_path / 'b'), "'03/04/2020' may have its day or its month first")


def test_a_store_without_places_goes_all_the_way(command: Command, tmp_path: Path) -> None:
    """It is trained on, without photos that cannot be read, exported with a card that says so, and captioned."""
    table = make_table(tmp_path, count=16, split=['train'] * 16)
    assert run(command, table, tmp_path / 'store')[0] == 0
    (tmp_path / 'ground' / '15.jpg').unlink()
    clip = ('--model', TINY_CLIP_DIR)
    assert command('embed', tmp_path / 'store', *clip)[0] == 0
    train = tmp_path / 'train.yaml'
    settings = f'store: {tmp_path}/store\nout: {tmp_path}/run\nclip: {{model: {TINY_CLIP_DIR}}}\n'
    train.write_text(settings + 'steps: 2\nbatch_tiles: 4\ntrackers: []\n')
    refused(command('train', train, '--set', 'masks.within_m=100'), '`masks.within_m`', 'have no position')
    code, err = command('train', train)
    assert code == 0 and '1 of 16 photos are left out (file is missing: 1)' in err
    assert command('export', tmp_path / 'run', tmp_path / 'model')[0] == 0
    card = (tmp_path / 'model' / 'README.md').read_text()
    assert 'Place: not known' in card and 'of pairs from elsewhere' in card
    assert [item.image_id for item in read_tiles(PairStore(tmp_path / 'store'))] == [f'{n}' for n in range(8)]


def test_a_photo_without_a_place_is_far_from_all_others(command: Command, tmp_path: Path) -> None:
    """And moves no other photo's place."""
    lon = [7.0 + 0.01 * n for n in range(12)]
    lon[2] = np.nan
    table = make_table(tmp_path, lon=lon, lat=[46.0] * 12)
    assert run(command, table, tmp_path / 'a')[0] == 0
    store = PairStore(tmp_path / 'a')
    places = earth_centred(store)
    assert places.shape == (12, 3)
    missing = store.photos['photo_id'].to_numpy() == 'ground/2.jpg'
    assert np.isnan(places[missing]).all() and np.isfinite(places[~missing]).all()
    east = store.photos.geometry.x.to_numpy()[~missing]
    angle = np.rad2deg(np.arctan2(places[~missing, 1], places[~missing, 0]))
    np.testing.assert_allclose(angle, east, atol=1e-4)


def test_columns_are_named_and_put_together(command: Command, tmp_path: Path) -> None:
    """A pattern makes file names of a row's own values; what no column tells is one sentence."""
    table = make_table(tmp_path)
    frame = pd.DataFrame({'name': range(12), 'scene': [n // 2 for n in range(12)]})
    frame.to_csv(table, index=False)
    refused(run(command, table, tmp_path / 'a'), 'no column for the file of the photo', '--column photo=COLUMN')
    named = ('--column', 'photo=ground/{name}.jpg', '--column', 'tile=above/{scene}.png')
    assert run(command, table, tmp_path / 'a', *named)[0] == 0
    assert len(PairStore(tmp_path / 'a').pairs) == 12
    refused(run(command, table, tmp_path / 'b', '--column', 'photo=ground/{no}.jpg'), "no column 'no' for photo", table)
    refused(run(command, table, tmp_path / 'b', '--column', 'phot=name'), "no column 'phot'")
    refused(run(command, table, tmp_path / 'b', *named, '--column', 'lon={name}'), 'lon is a number')


def test_tiles_of_two_sizes_need_a_size(command: Command, tmp_path: Path) -> None:
    """The sentence names both pictures; with a size all are its middle squares, if their pixels are of a size, too."""
    table = make_table(tmp_path)
    picture(tmp_path / 'above' / '4.png', 7, 36, 64)
    refused(run(command, table, tmp_path / 'a'), 'above/4.png has 36 x 64 px', '0.png has 32 x 32', '--size-px')
    assert run(command, table, tmp_path / 'a', '--size-px', 16)[0] == 0
    store = PairStore(tmp_path / 'a')
    assert store.read_tile(4).shape == (3, 16, 16) and store.sensor.gsd_m == pytest.approx(1.0)
    picture(tmp_path / 'above' / '4.png', 7, 64, 64)
    refused(run(command, table, tmp_path / 'b', '--size-px', 16), 'pixels of 2 m as a tile', '0.png has 1 m')
    picture(tmp_path / 'above' / '0.png', 7, 30, 32)
    refused(run(command, table, tmp_path / 'b'), '30 x 32 px', 'middle squares')


def test_a_place_in_two_splits_is_named(command: Command, tmp_path: Path) -> None:
    """So is a tile or a photo, and a split that is none; synonyms are known."""
    splits = ['train'] * 6 + ['Validation'] * 2 + ['test'] * 4
    table = make_table(tmp_path, split=splits)
    assert run(command, table, tmp_path / 'a')[0] == 0
    assert PairStore(tmp_path / 'a').tiles['split'].tolist() == ['train'] * 3 + ['val'] + ['test'] * 2
    make_table(tmp_path, split=['train'] * 5 + ['test'] * 7)
    refused(run(command, table, tmp_path / 'b'), 'puts the place p2 into test and train')
    make_table(tmp_path, split=['train'] * 11 + ['holdout'])
    refused(run(command, table, tmp_path / 'b'), "11.jpg has the split 'holdout'", 'train, val or test')
    make_table(tmp_path, split=['train'] * 11 + [None])
    refused(run(command, table, tmp_path / 'b'), '11.jpg has no split')


def test_ids_that_repeat_are_named(command: Command, tmp_path: Path) -> None:
    """An id stands for one file."""
    table = make_table(tmp_path, photo_id=['a', 'b'] * 6)
    refused(run(command, table, tmp_path / 'a'), "the photo_id 'a' to several files", '2 such ids')


def test_rows_that_contradict_each_other_are_named(command: Command, tmp_path: Path) -> None:
    """A photo at two places, a tile at two places and a pair of two roles; a row that says nothing contradicts none."""
    table = make_table(tmp_path, lon=[8.0] * 12, lat=[47.0] * 12, tile_lon=[8.0] * 12, tile_lat=[47.0] * 12)
    frame = pd.read_csv(table).assign(role='pair')
    again = frame.iloc[[0]]
    silent = again.assign(lon=np.nan, lat=np.nan, role=None)
    for column, value, of in (('lon', 9.0, 'photo ground/0.jpg'), ('tile_lat', 1.0, 'tile'), ('role', 'semi', 'pair')):
        pd.concat([frame, again.assign(**{column: value}), silent]).to_csv(table, index=False)
        refused(run(command, table, tmp_path / 'a'), f'gives the {of}', f'the {column} ', f'and {value}', 'leave one')
    pd.concat([frame, again, silent]).to_csv(table, index=False)
    assert run(command, table, tmp_path / 'a')[0] == 0
    assert len(PairStore(tmp_path / 'a').pairs) == 12


def test_a_file_behind_a_link_is_that_file(command: Command, tmp_path: Path) -> None:
    """A tile in training and, by a link, in the test is refused."""
    table = make_table(tmp_path, split=['train'] * 12)
    frame = pd.read_csv(table)
    (tmp_path / 'linked').symlink_to(tmp_path / Path(frame['tile'][0]).parent)
    other = {'tile': f'linked/{Path(frame["tile"][0]).name}', 'split': 'test', 'photo': 'ground/12.jpg'}
    picture(tmp_path / 'ground' / '12.jpg')
    pd.concat([frame, pd.DataFrame([other])]).to_csv(table, index=False)
    refused(run(command, table, tmp_path / 'a'), f'puts the tile {tmp_path / frame["tile"][0]} into test and train')


@pytest.mark.parametrize(
    ('crs', 'affine'),
    [
        ('LOCAL_CS["site",UNIT["metre",1]]', (1, 0, 70, 0, -1, 90)),
        ('EPSG:32632', (0, 0, 5e5, 0, 0, 5e6)),
        ('EPSG:32632', (1, 0, 9e12, 0, -1, 9e12)),
    ],
    ids=['a building site', 'pixels without size', 'beyond the Earth'],
)
def test_rasters_of_no_place_on_earth_are_pictures(
    command: Command, tmp_path: Path, crs: str, affine: tuple[float, ...]
) -> None:
    """They need `--gsd` as a PNG does, their photos stand in the middle, and they have no outline."""
    profile = {'driver': 'GTiff', 'width': 32, 'height': 32, 'count': 3, 'dtype': 'uint8', 'crs': crs}
    with rasterio.open(tmp_path / 't.tif', 'w', transform=rasterio.Affine(*affine), **profile) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))
    picture(tmp_path / 'p.jpg')
    (tmp_path / 'pairs.csv').write_text('photo,tile\np.jpg,t.tif\n')
    refused(command('import-pairs', tmp_path / 'pairs.csv', tmp_path / 'a'), 't.tif does not say how many metres')
    assert run(command, tmp_path / 'pairs.csv', tmp_path / 'a')[0] == 0
    store = PairStore(tmp_path / 'a')
    assert store.pairs[['row', 'col']].to_numpy().tolist() == [[16, 16]] and store.tiles.geometry.isna().all()


def test_odd_tables_and_stores_are_one_sentence(command: Command, tmp_path: Path) -> None:
    """Lines that end in carriage returns alone, two columns of one name, a store on a URL."""
    table = make_table(tmp_path)
    (tmp_path / 'old.csv').write_bytes(table.read_bytes().replace(b'\r', b'').replace(b'\n', b'\r'))
    refused(run(command, tmp_path / 'old.csv', tmp_path / 'a'), 'old.csv: its lines end in carriage returns alone')
    columns = [pa.array([name]) for name in ('ground/0.jpg', 'above/0.png', 'above/1.png')]
    pq.write_table(pa.Table.from_arrays(columns, names=['photo', 'tile', 'tile']), tmp_path / 'twice.parquet')
    refused(run(command, tmp_path / 'twice.parquet', tmp_path / 'a'), "has 2 columns 'tile'")
    refused(run(command, table, 's3://bucket/store'), 's3://bucket/store', 'local folder')
    assert not list(tmp_path.glob('s3*'))


def test_nothing_that_can_be_read_is_one_sentence(command: Command, tmp_path: Path) -> None:
    """No tile, no photo, no table, no rows."""
    table = make_table(tmp_path)
    shutil.move(tmp_path / 'above', tmp_path / 'below')
    refused(run(command, table, tmp_path / 'a'), 'None of the 6 tiles can be used', 'above/0.png')
    shutil.move(tmp_path / 'below', tmp_path / 'above')
    shutil.rmtree(tmp_path / 'ground')
    refused(run(command, table, tmp_path / 'b'), 'no pair of a photo and a tile', 'file is missing')
    refused(run(command, tmp_path / 'no.csv', tmp_path / 'c'), 'There is no table')
    table.write_text('photo,tile\n')
    refused(run(command, table, tmp_path / 'd'), 'has no row')
    refused(run(command, table, tmp_path, '--layout', 'cvusa'), 'holds')


def test_a_damaged_tile_loses_its_photos_alone(command: Command, tmp_path: Path) -> None:
    """Both are rejected with their reasons, and the rest goes on."""
    table = make_table(tmp_path)
    (tmp_path / 'above' / '2.png').write_bytes(b'no picture')
    assert run(command, table, tmp_path / 'a')[0] == 0
    store = PairStore(tmp_path / 'a')
    assert len(store.pairs) == 10 and not [f for f in check_store(store) if f.problems]
    lost = dict(zip(store.rejected['id'], store.rejected['reason'], strict=True))
    assert lost == {
        '2': 'cannot be read',
        'ground/4.jpg': 'in no tile that can be read, or outside of it',
        'ground/5.jpg': 'in no tile that can be read, or outside of it',
    }


def test_files_outside_of_the_folder_are_not_read(command: Command, tmp_path: Path) -> None:
    """A row that climbs out is rejected, as is a tile on the web."""
    table = make_table(tmp_path / 'in')
    picture(tmp_path / 'out.png')
    frame = pd.read_csv(table)
    frame.loc[0, 'photo'], frame.loc[2, 'tile'] = '../out.png', 'https://localhost/1.png'
    frame.to_csv(table, index=False)
    assert run(command, table, tmp_path / 'a')[0] == 0
    assert sorted(PairStore(tmp_path / 'a').rejected['reason']) == [
        'its tile is not on this machine',
        'uri leaves the root folder',
    ]


def test_positions_place_photos_in_georeferenced_tiles(command: Command, tmp_path: Path) -> None:
    """Row and column follow from longitude and latitude, metres a pixel from the file, outlines from both."""
    from rasterio.warp import transform

    east, north = 500_000.0, 5_000_000.0
    rows = []
    rng = np.random.default_rng(0)
    for number in range(4):
        left, top = east + 200 * number, north
        path = tmp_path / f't{number}.tif'
        profile = {'driver': 'GTiff', 'width': 48, 'height': 40, 'count': 3, 'dtype': 'uint8', 'crs': 'EPSG:32632'}
        with rasterio.open(path, 'w', transform=rasterio.Affine(2, 0, left, 0, -2, top), **profile) as file:
            file.write(rng.integers(0, 255, (3, 40, 48), dtype=np.uint8))
        picture(tmp_path / f'{number}.jpg', number)
        (lon,), (lat,) = transform('EPSG:32632', 'EPSG:4326', [left + 2 * 14.0], [top - 2 * 10.0])
        rows.append({'photo': f'{number}.jpg', 'tile': path.name, 'lon': lon, 'lat': lat})
    pd.DataFrame(rows).to_csv(tmp_path / 'pairs.csv', index=False)
    code, err = command('import-pairs', tmp_path / 'pairs.csv', tmp_path / 'store', '--size-px', 20)
    assert code == 0, err
    store = PairStore(tmp_path / 'store')
    assert store.sensor.gsd_m == pytest.approx(4.0, rel=1e-3)
    np.testing.assert_allclose(store.pairs['row'], 10 / 2, atol=1e-3)
    np.testing.assert_allclose(store.pairs['col'], (14 - 4) / 2, atol=1e-3)  # the middle square begins at column 4
    metric = store.tiles.to_crs(32632).geometry
    np.testing.assert_allclose(metric.bounds.iloc[1].tolist(), [east + 208, north - 80, east + 288, north], atol=0.1)
    assert not [f for f in check_store(store) if f.problems]


def test_a_picture_that_says_its_scale_is_believed(command: Command, tmp_path: Path) -> None:
    """`--gsd` is for pictures that do not say; one that contradicts is one sentence, and so are rows of two times."""
    profile = {'driver': 'GTiff', 'width': 32, 'height': 32, 'count': 3, 'dtype': 'uint8', 'crs': 'EPSG:32632'}
    with rasterio.open(tmp_path / 't.tif', 'w', transform=rasterio.Affine(2, 0, 5e5, 0, -2, 5e6), **profile) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))
    picture(tmp_path / 'p.jpg')
    (tmp_path / 'pairs.csv').write_text('photo,tile\np.jpg,t.tif\n')
    refused(run(command, tmp_path / 'pairs.csv', tmp_path / 'a'), 't.tif says that a pixel is 2 m, and --gsd 0.5')
    assert command('import-pairs', tmp_path / 'pairs.csv', tmp_path / 'a', '--gsd', 2.1)[0] == 0
    assert PairStore(tmp_path / 'a').sensor.gsd_m == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize('middle', [180, -180])
def test_tiles_across_the_antimeridian_are_small(command: Command, tmp_path: Path, middle: int) -> None:
    """Outlines of georeferenced and of placed pictures go on above 180, and photos on both sides stand in them."""
    step = 1e-5
    left, top = 180 - 16 * step, -16.8
    affine = rasterio.Affine(step, 0, middle - 16 * step, 0, -step, top)
    profile = {'driver': 'GTiff', 'width': 32, 'height': 32, 'count': 3, 'dtype': 'uint8', 'crs': 'EPSG:4326'}
    with rasterio.open(tmp_path / 't.tif', 'w', transform=affine, **profile) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))
    lines = ['photo,tile,lon,lat,taken_at', f'w.jpg,t.tif,{180 - 8 * step},{top - 8 * step},2021-04-03']
    lines += [f'e.jpg,t.tif,{-180 + 4 * step},{top - 24 * step},2021-04-03T10:00:00Z']
    lines += [lines[-1].replace('2021-04-03T10:00:00Z', '2021-04-03 10:00')]  # the same time, spelled in another way
    for photo in 'we':
        picture(tmp_path / f'{photo}.jpg')
    (tmp_path / 'pairs.csv').write_text('\n'.join(lines) + '\n')
    code, err = command('import-pairs', tmp_path / 'pairs.csv', tmp_path / 'a')
    assert code == 0, err
    store = PairStore(tmp_path / 'a')
    place = dict(zip(store.pairs['photo_id'], store.pairs[['row', 'col']].to_numpy(), strict=True))
    np.testing.assert_allclose([place['w.jpg'], place['e.jpg']], [[8, 8], [24, 20]], atol=1e-3)
    bounds = store.tiles.geometry.bounds.iloc[0].tolist()
    np.testing.assert_allclose(bounds, [left, top - 32 * step, left + 32 * step, top], atol=1e-9)
    picture(tmp_path / 't.png')
    (tmp_path / 'placed.csv').write_text(f'photo,tile,lon,lat\nw.jpg,t.png,{-180 + step},{top}\n')
    assert run(command, tmp_path / 'placed.csv', tmp_path / 'b')[0] == 0
    west, _, edge, _ = PairStore(tmp_path / 'b').tiles.geometry.bounds.iloc[0]
    assert edge - west == pytest.approx(16 / 111_320 / np.cos(np.deg2rad(top)), rel=1e-2) and west < 180 < edge


def test_tiles_without_a_place_are_a_set_without_places(command: Command, tmp_path: Path) -> None:
    """Where some tiles do not know theirs, intervals are taken over images."""
    table = make_table(tmp_path, split=['test'] * 12)
    assert run(command, table, tmp_path / 'a')[0] == 0
    data = open_pairs(str(tmp_path / 'a'), 'test')
    assert data.lonlat() is None and len(data) == 6


def test_bands_and_ranges_are_asked_for(command: Command, tmp_path: Path) -> None:
    """Five bands need names, 16 bits a range; two kinds of numbers are two imports."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(3):
        picture(tmp_path / f'{number}.jpg', number)
        profile = {'driver': 'GTiff', 'width': 16, 'height': 16, 'count': 5, 'dtype': 'uint16'}
        with rasterio.open(tmp_path / f'{number}.tif', 'w', **profile) as file:
            file.write(rng.integers(0, 4000, (5, 16, 16), dtype=np.uint16))
        rows.append({'photo': f'{number}.jpg', 'tile': f'{number}.tif'})
    table = tmp_path / 'pairs.csv'
    pd.DataFrame(rows).to_csv(table, index=False)
    refused(run(command, table, tmp_path / 'a'), 'uint16 numbers', '--value-range')
    limits = ('--value-range', 0, 3000)
    refused(run(command, table, tmp_path / 'a', *limits), 'has 5 bands', '--bands')
    named = (*limits, '--bands', 'blue,green,red,edge,nir')
    assert run(command, table, tmp_path / 'a', *named)[0] == 0
    picture(tmp_path / '2.tif', 0, 16, 16)
    refused(run(command, table, tmp_path / 'b', *named), '2.tif has 3 bands', 'by themselves')


def test_layouts_and_tables_are_told_apart(command: Command, tmp_path: Path) -> None:
    """An unknown layout, a layout with columns, a column without a value."""
    table = make_table(tmp_path)
    refused(run(command, table, tmp_path / 'a', '--layout', 'kitti'), 'layout', 'cvusa')
    refused(
        run(command, tmp_path, tmp_path / 'a', '--layout', 'cvusa', '--column', 'photo=x'), '`columns` are of tables'
    )
    refused(run(command, table, tmp_path / 'a', '--column', 'photo'), '--column photo is not understood')
    refused(run(command, table, tmp_path / 'a', '--shares', 0.5, 0.1, 0.1), '`shares` must sum to 1')
    assert run(command, table, tmp_path / 'a', '--json')[0] == 0
    assert json.loads((tmp_path / 'a' / 'dataset.json').read_text())['imported']['gsd_m'] == 0.5
