"""Published layouts: invented rows in exactly the published form come out as photos with all their metadata."""

from __future__ import annotations

import bz2
import gzip
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyproj import Transformer

from grafalign.errors import GrafalignError
from grafalign.photos import Photos, PhotoSource, read_photos
from grafalign.photos.layouts.inaturalist import read_observations

FIXTURES = Path(__file__).parent / 'fixtures' / 'layouts'


def read(layout: str, name: str, **more: object) -> Photos:
    """Photos of a fixture."""
    table = Path(name) if Path(name).is_absolute() else FIXTURES / name
    return read_photos(PhotoSource.model_validate({'table': table, 'layout': layout, **more}))


def metadata(photos: Photos, photo_id: str) -> dict[str, object]:
    """One photo; unknown values are None."""
    row = photos.table[photos.table['photo_id'] == photo_id].iloc[0]
    return {k: None if pd.isna(v) else v for k, v in row.items()}


def reasons(photos: Photos) -> dict[str, str]:
    """Why rows were rejected."""
    return dict(photos.rejected[['id', 'reason']].itertuples(index=False))


def test_yfcc100m() -> None:
    """A photo of YFCC100M has its level's metres, SPDX licence and decoded author; videos are rejected."""
    photos = read('yfcc100m', 'yfcc100m_dataset.bz2')
    first = metadata(photos, '6000000001')
    assert (first['lon'], first['lat'], first['heading_deg']) == (13.405, 52.52, None)
    assert first['accuracy_m'] == pytest.approx(23.9, abs=0.1)
    assert first['taken_at'] == pd.Timestamp('2012-02-16T09:56:37Z')
    assert first['uri'] == 'http://farm8.staticflickr.com/7205/6000000001_abc.jpg'
    assert (first['licence'], first['author'], first['source']) == ('CC-BY-NC-SA-2.0', 'Ada Löwe', 'yfcc100m')
    second = metadata(photos, '6000000002')
    assert second['taken_at'] is None
    assert second['accuracy_m'] == pytest.approx(382, abs=1)
    assert reasons(photos) == {'6000000003': 'video', '6000000004': 'no position'}


@pytest.mark.parametrize('dropped', [(0,), (0, 2)])
def test_yfcc100m_releases_differ_in_columns(dropped: tuple[int, ...], tmp_path: Path) -> None:
    """Releases without line number, and without hash too, are told by their number of fields."""
    lines = bz2.decompress((FIXTURES / 'yfcc100m_dataset.bz2').read_bytes()).decode().splitlines()
    shorter = ['\t'.join(c for i, c in enumerate(line.split('\t')) if i not in dropped) for line in lines]
    (tmp_path / 'yfcc100m_dataset').write_text('\n'.join(shorter) + '\n')
    expected = read('yfcc100m', 'yfcc100m_dataset.bz2')
    pd.testing.assert_frame_equal(read('yfcc100m', str(tmp_path / 'yfcc100m_dataset')).table, expected.table)


def test_yfcc100m_of_local_copies(tmp_path: Path) -> None:
    """With a root the photos are its ID.jpg, and those that are not there are rejected."""
    shutil.copy(FIXTURES / 'yfcc100m_dataset.bz2', tmp_path)
    with pytest.raises(GrafalignError, match='file is missing'):
        read('yfcc100m', str(tmp_path / 'yfcc100m_dataset.bz2'), root=tmp_path)


@pytest.mark.parametrize('table', ['inaturalist', 'inaturalist/photos.csv.gz', 'inaturalist/*.csv.gz'])
def test_inaturalist(table: str) -> None:
    """Photos of iNaturalist have place, day and error of their observation and the name of their observer."""
    photos = read('inaturalist', table)
    first = metadata(photos, '101')
    assert (first['lon'], first['lat'], first['accuracy_m']) == (8.5417, 47.3769, 15)
    assert first['taken_at'] == pd.Timestamp('2019-06-01', tz='UTC')
    assert (first['licence'], first['author']) == ('CC-BY-NC-4.0', 'Ada "the Moth" Löwe')
    assert first['uri'] == 'https://inaturalist-open-data.s3.amazonaws.com/photos/101/medium.jpg'
    assert (first['width'], first['height']) == (500, 375)
    second = metadata(photos, '102')
    assert (second['width'], second['height'], second['licence']) == (400, 300, 'CC0-1.0')
    assert second['uri'].endswith('/102/medium.jpeg')
    third = metadata(photos, '103')
    assert (third['accuracy_m'], third['taken_at'], third['author']) == (None, None, 'bo')
    assert set(reasons(photos)) == {'104', '105'}
    assert set(reasons(photos).values()) == {'no observation with a place'}


def test_inaturalist_without_observations_is_refused(tmp_path: Path) -> None:
    """Photos alone have no places: the sentence names the file that lacks."""
    shutil.copy(FIXTURES / 'inaturalist' / 'photos.csv.gz', tmp_path)
    with pytest.raises(GrafalignError, match=r'no observations\.csv\.gz beside it'):
        read('inaturalist', str(tmp_path / 'photos.csv.gz'))


def test_observations_are_found_by_both_halves_of_their_uuid(tmp_path: Path) -> None:
    """The packed index finds each of many observations, also where the first halves of their uuids are the same."""
    rng = np.random.default_rng(3)
    high, low = rng.integers(0, 50, 1000), rng.permutation(1000)
    uuids = [f'{h:08x}-0000-0000-0000-{v:012x}' for h, v in zip(high, low, strict=True)]
    lines = ['observation_uuid\tlatitude\tlongitude', *(f'{u}\t{i / 100}\t{-i / 100}' for i, u in enumerate(uuids))]
    (tmp_path / 'observations.csv').write_text('\n'.join(lines))
    index = read_observations(str(tmp_path / 'observations.csv'))
    words = [np.array([int(u.replace('-', '')[a : a + 16], 16) for u in uuids], dtype=np.uint64) for a in (0, 16)]
    found = index.find(*words)
    np.testing.assert_allclose(index.lat[found] / 1e7, np.arange(1000) / 100)
    assert (index.find(words[0], words[1] + np.uint64(5000)) == -1).all()


def test_lucas() -> None:
    """One visit becomes a photo for each direction that was taken, with that heading; invalid GPS is no position."""
    photos = read('lucas', 'lucas_harmo_uf.csv')
    point = photos.table[photos.table['photo_id'].str.startswith('38863060')]
    assert dict(zip(point['photo_id'].str[-1], point['heading_deg'], strict=True)) == {
        'N': 0,
        'E': 90,
        'S': 180,
        'W': 270,
    }
    north = metadata(photos, '38863060-2018-N')
    assert (north['lon'], north['lat'], north['accuracy_m']) == (3.862602, 50.487801, 4)
    assert north['taken_at'] == pd.Timestamp('2018-09-21', tz='UTC')
    assert north['uri'] == 'https://gisco-services.ec.europa.eu/lucas/photos/2018/BE/388/630/38863060N.jpg'
    assert (north['licence'], north['author'], north['source']) == ('CC-BY-4.0', None, 'lucas')
    western = photos.table[photos.table['photo_id'].str.startswith('26381956')]
    assert sorted(western['photo_id'].str[-1]) == ['N', 'S']
    assert (western['lon'] == -8.401).all()
    assert western['accuracy_m'].isna().all()
    assert reasons(photos) == {
        '40003000-2018-N': 'no position',
        '40003002-2018': 'no photo to north, east, south or west',
    }


def test_lucas_of_local_copies(tmp_path: Path) -> None:
    """With a root the photos lie in its folders by year, country and point."""
    source = PhotoSource(table=FIXTURES / 'lucas_harmo_uf.csv', layout='lucas', root='https://mirror.example/lucas')
    photos = read_photos(source)
    assert metadata(photos, '38863060-2018-E')['uri'] == 'https://mirror.example/lucas/2018/BE/388/630/38863060E.jpg'


def test_mapillary() -> None:
    """Images of the API have their computed place and heading where there are any; panoramas are rejected."""
    photos = read('mapillary', 'mapillary_images.json')
    first, second = metadata(photos, '200000000000001'), metadata(photos, '200000000000002')
    assert (first['lon'], first['lat'], first['heading_deg']) == (18.0701, 59.3301, 87.25)
    assert (second['lon'], second['lat'], second['heading_deg']) == (18.07, 59.33, 90.5)
    assert first['taken_at'] == pd.Timestamp('2021-07-01T12:00:00Z')
    assert (first['licence'], first['author'], first['width']) == ('CC-BY-SA-4.0', 'ada', 4032)
    assert first['uri'] == 'https://scontent.example/200000000000001.jpg'
    assert reasons(photos) == {'200000000000003': 'panorama', '200000000000004': 'panorama'}


def test_mapillary_in_all_its_forms_is_the_same(tmp_path: Path) -> None:
    """The same images one a line, compressed, are the same photos; GeoJSON of the vector tiles is read too."""
    expected = read('mapillary', 'mapillary_images.json')
    rows = json.loads((FIXTURES / 'mapillary_images.json').read_text())['data']
    (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress('\n'.join(map(json.dumps, rows)).encode()))
    pd.testing.assert_frame_equal(read('mapillary', str(tmp_path / 'a.jsonl.gz')).table, expected.table)
    tiles = read('mapillary', 'mapillary_images.geojson')
    assert metadata(tiles, '200000000000001')['heading_deg'] == 90.5
    assert reasons(tiles) == {'200000000000002': 'panorama'}


def test_geograph_needs_to_know_where_the_images_are() -> None:
    """The public dumps hold no addresses: without a root the sentence says what to do."""
    with pytest.raises(GrafalignError, match=r'set photos\.root to a folder of ID\.jpg'):
        read('geograph', 'geograph')


def test_geograph() -> None:
    """A photo stands in the middle of the photographer's square, or at the subject; its error is that of the square."""
    photos = read('geograph', 'geograph', root='https://mirror.example/geograph')
    barn, lane, bog = (metadata(photos, i) for i in ('123456', '4098820', '5000001'))
    british = Transformer.from_crs('EPSG:27700', 'EPSG:4326', always_xy=True)
    assert (barn['lon'], barn['lat']) == pytest.approx(british.transform(530125, 180345))
    assert barn['accuracy_m'] == pytest.approx(math.sqrt(50))
    assert (barn['heading_deg'], barn['author'], barn['width']) == (315, 'Ada "Fields" Low', 640)
    assert barn['uri'] == 'https://mirror.example/geograph/123456.jpg'
    assert (lane['lon'], lane['lat'], lane['heading_deg'], lane['taken_at']) == (-2.79, 54.07, None, None)
    assert lane['accuracy_m'] == pytest.approx(1000 * math.sqrt(0.5))
    irish = Transformer.from_crs('EPSG:29903', 'EPSG:4326', always_xy=True)
    assert (bog['lon'], bog['lat']) == pytest.approx(irish.transform(315950, 234650))
    assert bog['accuracy_m'] == pytest.approx(100 * math.sqrt(0.5))
    assert bog['taken_at'] == pd.Timestamp('2016-07-30', tz='UTC')
    assert set(photos.table['licence']) == {'CC-BY-SA-2.0'}


def test_geograph_addresses_follow_from_the_hash(tmp_path: Path) -> None:
    """With the hash of each image its address is put together as the site does, for old and new ids."""
    lines = gzip.decompress((FIXTURES / 'geograph' / 'gridimage_base.tsv.gz').read_bytes()).decode().splitlines()
    hashed = [f'{line}\t{"hash" if i == 0 else "0abc3aa7"}' for i, line in enumerate(lines)]
    (tmp_path / 'gridimage_base.tsv').write_text('\n'.join(hashed))
    photos = read('geograph', str(tmp_path / 'gridimage_base.tsv'))
    assert metadata(photos, '123456')['uri'] == 'https://s0.geograph.org.uk/photos/12/34/123456_0abc3aa7.jpg'
    assert metadata(photos, '4098820')['uri'] == 'https://s0.geograph.org.uk/geophotos/04/09/88/4098820_0abc3aa7.jpg'


def test_flickr() -> None:
    """Answers of the API give address, size, licence and time; 0, 0 without level is no geotag; videos are rejected."""
    photos = read('flickr', 'flickr_search.json')
    first = metadata(photos, '501')
    assert (first['lon'], first['lat']) == (2.2945, 48.8584)
    assert first['accuracy_m'] == pytest.approx(23.9, abs=0.1)
    assert first['uri'] == 'https://live.staticflickr.com/65535/501_5ecre7_b.jpg'
    assert (first['width'], first['height']) == (1024, 683)
    assert (first['licence'], first['author']) == ('CC-BY-SA-2.0', 'Ada Löwe')
    assert first['taken_at'] == pd.Timestamp('2016-05-01T12:34:56Z')
    second = metadata(photos, '502')
    assert (second['taken_at'], second['licence'], second['width']) == (None, 'CC0-1.0', None)
    assert second['uri'] == 'https://live.staticflickr.com/65535/502_5ecre7_b.jpg'
    last = metadata(photos, '505')
    assert (last['taken_at'], last['licence']) == (None, 'All-Rights-Reserved')
    assert last['accuracy_m'] == pytest.approx(764, abs=1)
    assert reasons(photos) == {'503': 'no position', '504': 'video'}


@pytest.mark.parametrize('layout', ['flickr', 'geograph', 'inaturalist', 'lucas', 'mapillary', 'yfcc100m'])
def test_a_table_of_another_layout_is_refused(layout: str, tmp_path: Path) -> None:
    """A table that is not in the layout named is refused in one sentence with its name."""
    name = {'inaturalist': 'photos.csv', 'geograph': 'gridimage_base.csv'}.get(layout, 'table.csv')
    (tmp_path / name).write_text('some,thing\n1,2\n')
    (tmp_path / 'observations.csv').write_text('some,thing\n1,2\n')
    with pytest.raises(GrafalignError, match=layout) as caught:
        read(layout, str(tmp_path / name))
    assert '\n' not in str(caught.value)
