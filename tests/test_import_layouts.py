"""Published layouts of pairs, whatever is held out together, and the parts that imports are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafalign.errors import InputError
from grafalign.pairing.check import check_store
from grafalign.pairing.elsewhere.ids import in_archive, tile_ids
from grafalign.pairing.elsewhere.layouts import VIGOR_GSD_M
from grafalign.pairing.elsewhere.pictures import cut
from grafalign.pairing.elsewhere.rows import complete
from grafalign.pairing.elsewhere.splits import groups, splits_of
from grafalign.store import PairStore
from tests.commands import Command, refused
from tests.made_pairs import make_university, make_vigor, picture

SHARES = {'train': 0.6, 'val': 0.2, 'test': 0.2}


def test_cvusa(command: Command, tmp_path: Path) -> None:
    """Its lists name tiles before panoramas; the second one is the test set."""
    for name, numbers in (('train-19zl', range(4)), ('val-19zl', range(4, 6))):
        lines = [
            f'bingmap/19/{n:07d}.jpg,streetview/panos/{n:07d}.jpg,streetview/annotations/{n:07d}.png' for n in numbers
        ]
        (tmp_path / 'splits').mkdir(exist_ok=True)
        text = '\n'.join(lines) + '\n'
        if name == 'val-19zl':  # as spreadsheets write it
            text = '\ufeff' + text.replace(',', ', ')
        (tmp_path / 'splits' / f'{name}.csv').write_text(text)
    for number in range(6):
        picture(tmp_path / 'bingmap' / '19' / f'{number:07d}.jpg', number, 30, 30)
        picture(tmp_path / 'streetview' / 'panos' / f'{number:07d}.jpg', number, 20, 60)
    code, err = command('import-pairs', tmp_path, tmp_path / 'store', '--layout', 'cvusa')
    assert code == 0 and '0.24 m is assumed' in err
    store = PairStore(tmp_path / 'store')
    assert store.tiles['split'].tolist() == ['train'] * 4 + ['test'] * 2
    assert [Path(p).stem for p in store.pairs['photo_id']] == [f'{n:07d}' for n in range(6)]
    with (tmp_path / 'splits' / 'train-19zl.csv').open('a') as file:
        file.write('../out.jpg,streetview/panos/0000000.jpg,x\n')
    code, err = command('import-pairs', tmp_path, tmp_path / 'c', '--layout', 'cvusa')
    assert code == 0, err
    assert PairStore(tmp_path / 'c').rejected[['kind', 'reason']].to_numpy().tolist() == [
        ['pair', 'uri leaves the root folder']
    ]
    (tmp_path / 'splits' / 'train-19zl.csv').write_text('')
    (tmp_path / 'splits' / 'val-19zl.csv').write_text('')
    code, err = command('import-pairs', tmp_path, tmp_path / 'd', '--layout', 'cvusa')
    assert code == InputError.exit_code and 'lists no pair' in err
    (tmp_path / 'splits' / 'val-19zl.csv').unlink()
    refused(
        command('import-pairs', tmp_path, tmp_path / 'b', '--layout', 'cvusa'), 'val-19zl.csv of CVUSA cannot be read'
    )


def test_vigor(command: Command, tmp_path: Path) -> None:
    """Two cities train and two test; positions in file names place panoramas; three tiles of four are no mistake."""
    make_vigor(tmp_path)
    code, err = command('import-pairs', tmp_path, tmp_path / 'store', '--layout', 'vigor', '--size-px', 64)
    assert code == 0, err
    store = PairStore(tmp_path / 'store')
    assert not [f for f in check_store(store) if f.problems]
    assert len(store.tiles) == 4 * 5 and len(store.photos) == 4 * 2
    assert store.pairs['role'].value_counts().to_dict() == {'semi': 24, 'pair': 8}
    cities = store.tiles['uri'].str.split('/').str[-3]
    assert store.tiles['split'].groupby(cities).unique().map(list).to_dict() == {
        'NewYork': ['train'], 'Seattle': ['train'], 'Chicago': ['test'], 'SanFrancisco': ['test']
    }  # fmt: skip
    middle = store.tiles.geometry.centroid  # tile 4, which no panorama is in, among them
    named = store.tiles['uri'].str.extract(r'satellite_([-.0-9]+)_([-.0-9]+)\.png').astype(float)
    np.testing.assert_allclose(middle.y, named[0], atol=1e-7)
    np.testing.assert_allclose(middle.x, named[1], atol=1e-7)
    assert not store.tiles['tile_id'].str.contains('.', regex=False).any()
    chicago = store.pairs[store.pairs['photo_id'].str.contains('Chicago') & (store.pairs['role'] == 'pair')]
    # 10 m north and 6 m east of the middle of a picture of 640 px, shown in 64
    expected = [(320 - 10 / VIGOR_GSD_M['Chicago']) / 10, (320 + 6 / VIGOR_GSD_M['Chicago']) / 10]
    np.testing.assert_allclose(chicago[['row', 'col']].iloc[0], expected, atol=0.02)
    lists = tmp_path / 'splits' / 'Chicago' / 'pano_label_balanced.txt'
    lists.write_text('pano,1,2,.jpg satellite_1_2.png 0 0\n')
    refused(command('import-pairs', tmp_path, tmp_path / 'b', '--layout', 'vigor'), 'line 1 has 4 words', lists)


def test_university(command: Command, tmp_path: Path) -> None:
    """Buildings of the gallery that nobody asks for are searched among; the ground side is chosen."""
    make_university(tmp_path)
    picture(tmp_path / 'train' / 'drone' / '0999' / '1.jpg')
    code, err = command('import-pairs', tmp_path, tmp_path / 's', '--layout', 'university-1652', '--ground', 'drone')
    assert code == 0, err
    assert 'left out for lack of a picture from above: 1' in err and '0999' in err
    store = PairStore(tmp_path / 's')
    assert not [f for f in check_store(store) if f.problems]
    assert store.tiles['split'].value_counts().to_dict() == {'test': 4, 'train': 2}
    roles = store.pairs['role'].groupby(store.tiles['split'].to_numpy()[store.pairs['tile']]).value_counts()
    assert roles.to_dict() == {('test', 'pair'): 6, ('test', 'gallery'): 6, ('train', 'pair'): 6}
    refused(command('import-pairs', tmp_path / 'test', tmp_path / 't', '--layout', 'university-1652'), 'There is no')
    (tmp_path / 'train' / 'google').mkdir()
    google = ('--layout', 'university-1652', '--ground', 'google')
    refused(command('import-pairs', tmp_path, tmp_path / 't', *google), 'gallery_google', 'another --ground')


rows_of_pairs = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.one_of(st.none(), st.integers(0, 4))), min_size=1, max_size=30
)


@given(rows_of_pairs, st.integers(0, 9))
def test_whatever_shares_a_photo_tile_or_place_is_on_one_side(pairs: list[Any], seed: int) -> None:
    """The groups are those of a search from row to row, and a group has one split."""
    frame = pd.DataFrame(pairs, columns=['photo', 'tile', 'place']).astype('string')
    frame = complete(frame)
    found = groups(frame)
    for start in range(len(frame)):
        reached, front = {start}, [start]
        while front:
            here = frame.iloc[front.pop()]
            for other in range(len(frame)):
                same = any(
                    pd.notna(here[c]) and pd.notna(frame[c].iloc[other]) and here[c] == frame[c].iloc[other]
                    for c in ('photo', 'tile', 'place')
                )
                if same and other not in reached:
                    reached.add(other)
                    front.append(other)
        assert set(np.flatnonzero(found == found[start])) == reached
    splits = splits_of(frame, SHARES, seed, 'table')
    assert pd.Series(splits).groupby(found).nunique().max() == 1
    order = np.random.default_rng(seed).permutation(len(frame))
    np.testing.assert_array_equal(
        splits_of(frame.iloc[order].reset_index(drop=True), SHARES, seed, 'table'), splits[order]
    )


def test_photos_of_one_block_of_land_are_on_one_side() -> None:
    """Places are blocks of 20 km, by the photo or the tile; the order of rows does not matter."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            'photo': [f'{n}' for n in range(300)],
            'tile': [f't{n}' for n in range(300)],
            'lon': rng.uniform(5, 8, 300),
            'lat': rng.uniform(45, 48, 300),
        }
    )
    frame = complete(frame)
    splits = pd.Series(splits_of(frame, SHARES, 3, 'table'))
    height = 20 / 111.32
    row = np.floor((frame['lat'] + 90) / height)
    assert splits.groupby([row, np.floor(frame['lon'] / 0.01)]).nunique().max() == 1  # closer than 1 km in a block row
    order = rng.permutation(300)
    again = splits_of(frame.iloc[order].reset_index(drop=True), SHARES, 3, 'table')
    np.testing.assert_array_equal(again, splits.to_numpy()[order])
    assert set(splits) == {'train', 'val', 'test'}
    by_tile = frame.assign(tile_lon=frame['lon'], tile_lat=frame['lat'])
    by_tile.loc[::2, ['lon', 'lat']] = np.nan
    np.testing.assert_array_equal(splits_of(by_tile, SHARES, 3, 'table'), splits)
    by_tile.loc[0, ['tile_lon', 'tile_lat']] = np.nan  # one that nobody places is drawn by itself
    np.testing.assert_array_equal(splits_of(by_tile, SHARES, 3, 'table')[1:], splits[1:])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 100))
def test_a_cut_keeps_the_middle(height: int, width: int, size: int, seed: int) -> None:
    """An even picture stays as it is, a square one of the right size too, and numbers stay in their type."""
    flat = np.full((2, height, width), 7, np.uint16)
    assert (cut(flat, size) == 7).all() and cut(flat, size).dtype == np.uint16
    pixels = np.random.default_rng(seed).integers(0, 255, (3, height, width), dtype=np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    np.testing.assert_array_equal(cut(pixels, side), pixels[:, top : top + side, left : left + side])


def test_a_smaller_tile_shows_the_same_ground() -> None:
    """A ramp keeps its values at the same places, to a thousandth, and its mean."""
    ramp = np.tile(np.arange(64, dtype=np.float32), (1, 64, 1))
    small = cut(ramp, 16)
    np.testing.assert_allclose(small[0, :, 2:-2], np.tile(1.5 + 4 * np.arange(2, 14), (16, 1)), atol=1e-3)
    assert small.mean() == pytest.approx(ramp.mean(), abs=1e-3)


def test_tile_ids_are_short_plain_and_each_once() -> None:
    """Names of files where they differ, with folders where they do not, cut with a digest where they are long."""
    assert tile_ids(pd.Series(['a/x.png', 'b/y.png', None])).tolist()[:2] == ['x', 'y']
    assert tile_ids(pd.Series(['a/x.png', 'b/x.png'])).tolist() == ['a-x', 'b-x']
    assert tile_ids(pd.Series(['x.png', 'x.tif'])).tolist() == ['xppng', 'xptif']
    assert tile_ids(pd.Series(['x/b.png', 'y/b.png', 'x-b.png'])).nunique() == 3
    long = [in_archive(f'{"ä" * 100}/{n}') for n in range(2)]
    assert len(set(long)) == 2 and all(len(name.encode()) <= 90 for name in long)
