"""`grafalign explore`: a real server, real browsers, hostile requests, heat against scores."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import requests
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer

pytest.importorskip('fastapi', reason="the page needs `pip install 'grafalign[explore]'`")
import uvicorn

from grafalign.explore.app import MOST_BODY, make_app
from grafalign.explore.grid import FieldGrid, degrees_of, tile_box
from grafalign.explore.heat import Heat
from grafalign.explore.serve import open_session
from grafalign.explore.session import MOST_CORNERS, SearchQuery, Session
from grafalign.fields import Field
from grafalign.models import Model
from grafalign.search import build_index
from grafalign.store import PairStore
from tests.commands import DEADLINE_S, Command, finish, refused, start
from tests.scenes import patchwork, write_scene
from tests.test_fields import MODEL, made

CHROMIUM = next(
    (path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), None
)


@pytest.fixture(scope='module')
def field(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """A field of a scene of coloured squares, whose corner is missing."""
    folder = tmp_path_factory.mktemp('explore')
    pixels = patchwork(640, 512)
    pixels[:, :128, :128] = 0
    return made(write_scene(folder / 'scene.tif', pixels, nodata=0), folder / 'field', model)


@pytest.fixture(scope='module')
def index(field: Field, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of its tiles."""
    out = tmp_path_factory.mktemp('index') / 'index'
    build_index(str(field.path), out, model, MODEL)
    return out


@pytest.fixture(scope='module')
def session(index: Path, field: Field, store: PairStore) -> Session:
    """Both, with the photos of a sandbox store, which lie elsewhere."""
    return open_session(index, [field.path], Path(str(store.path)))


@contextlib.contextmanager
def served(session: Session, token: str | None = None) -> Iterator[str]:
    """The page's server; gives its address."""
    listening = socket.create_server(('127.0.0.1', 0))
    app = make_app(session, ['127.0.0.1', 'localhost'], token)
    server = uvicorn.Server(uvicorn.Config(app, log_level='error'))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_S
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f'http://127.0.0.1:{listening.getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope='module')
def url(session: Session) -> Iterator[str]:
    """Its address."""
    with served(session) as address:
        yield address


def search(url: str, **content: Any) -> Any:
    """A search of the page."""
    return requests.post(f'{url}/api/search', json=content, timeout=60)


def tile_of(field: Field, z: int) -> tuple[int, int, int]:
    """The web map tile over the middle of a field."""
    box = field.geobox
    x, y = box.affine * (box.shape[1] / 2, box.shape[0] / 2)
    lon, lat = Transformer.from_crs(str(box.crs), 'EPSG:4326', always_xy=True).transform(x, y)
    row = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2
    return z, int((lon + 180) / 360 * 2**z), int(row * 2**z)


# --- answers


def test_answers_and_exports_are_those_of_search(
    url: str, index: Path, field: Field, command: Command, tmp_path: Path
) -> None:
    """The same items, scores and files, byte for byte where the format allows, with a region and days too."""
    west, south, east, north = field.geobox.extent.to_crs('EPSG:4326').boundingbox.bbox
    box = west, south, (west + east) / 2, north
    region = json.loads(shapely.to_geojson(shapely.box(*box)))
    (tmp_path / 'region.geojson').write_text(json.dumps(region))
    for more, options in (
        ({}, ()),
        (
            {'region': region, 'begin': '2023-01-01T00:00:00Z'},
            ('--region', tmp_path / 'region.geojson', '--from', '2023-01-01'),
        ),
    ):
        for words in ('forest', 'forest -water', 'semi-detached houses +trees'):
            found = search(url, text=words, k=7, **more).json()
            files = [tmp_path / f'answers.{ending}' for ending in ('geojson', 'parquet', 'csv')]
            out = [part for file in files for part in ('--out', file)]
            code, err = command('search', index, words, '-k', 7, *options, *out)
            assert code == 0, err
            given = [requests.get(f'{url}/api/export/{found["query"]}{f.suffix}', timeout=60) for f in files]
            assert all(answer.headers['content-disposition'].startswith('attachment') for answer in given)
            assert given[0].content == files[0].read_bytes() and given[2].content == files[2].read_bytes()
            pd.testing.assert_frame_equal(
                gpd.read_parquet(io.BytesIO(given[1].content)), gpd.read_parquet(files[1]), check_like=True
            )
            assert found['answers'] == json.loads(files[0].read_text())


def test_pictures_places_and_items_are_looked_for_too(url: str, session: Session, index: Path) -> None:
    """More like this has the item itself first; a picture of an item finds it; a place the item that holds it."""
    first = search(url, like=3, k=5).json()['answers']['features']
    assert first[0]['properties']['row'] == 3 and first[0]['properties']['score'] == pytest.approx(1, abs=1e-3)
    place = shapely.geometry.shape(first[0]['geometry']).representative_point()
    here = search(url, lonlat=[place.x, place.y], k=1).json()['answers']['features'][0]
    assert here['properties']['row'] == 3 and here['properties']['query'] == f'{place.x:g}, {place.y:g}'
    buffer = io.BytesIO()
    Image.fromarray(patchwork(64, 64).transpose(1, 2, 0)).save(buffer, 'PNG')
    found = search(url, picture=base64.b64encode(buffer.getvalue()).decode(), k=3)
    assert found.status_code == 200 and len(found.json()['answers']['features']) == 3


def test_tuned_words_mean_what_points_made_of_them(index: Path, field: Field, command: Command, tmp_path: Path) -> None:
    """A query that is a tuned class gives what `search --tuned` gives, and others go through the model."""
    box, rng = field.geobox, np.random.default_rng(0)
    x, y = box.affine * (rng.uniform(200, 500, 12), rng.uniform(200, 600, 12))
    points = gpd.GeoDataFrame(
        {'class': ['forest', 'water'] * 6}, geometry=gpd.points_from_xy(x, y), crs=str(box.crs)
    ).to_crs('EPSG:4326')
    points.to_file(tmp_path / 'points.geojson')
    words = tmp_path / 'words.npz'
    assert command('tune-words', field.path, tmp_path / 'points.geojson', '--out', words)[0] == 0
    assert command('search', index, 'water', '--tuned', words, '-k', 5, '--out', tmp_path / 'a.geojson')[0] == 0
    with served(open_session(index, [field.path], tuned=words)) as address:
        assert requests.get(f'{address}/api/about', timeout=60).json()['tuned'] == ['forest', 'water']
        tuned = search(address, text='water', k=5).json()['answers']
        assert tuned == json.loads((tmp_path / 'a.geojson').read_text())
        plain = search(address, text='sea', k=5).json()['answers']
    with served(open_session(index, [field.path])) as address:
        assert search(address, text='water', k=5).json()['answers'] != tuned
        assert search(address, text='sea', k=5).json()['answers'] == plain


def test_a_score_filters_answers(url: str) -> None:
    """Only answers of at least that score stay, in their order."""
    scores = [f['properties']['score'] for f in search(url, text='forest', k=20).json()['answers']['features']]
    least = scores[4]
    kept = search(url, text='forest', k=20, least=least - 1e-6).json()['answers']['features']
    assert [f['properties']['score'] for f in kept] == scores[: len(kept)] and len(kept) >= 5


# --- heat


@pytest.mark.parametrize('kept', [1 << 30, 40_000])
def test_heat_is_the_score_of_the_field(
    session: Session, field: Field, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the middles of tiles' pixels opacity grows with the field's own scores, from cells and from means of them."""
    monkeypatch.setattr('grafalign.explore.heat._KEPT_BYTES', kept)
    heat = Heat(field)
    assert (heat.factor == 1) is (kept > 40_000)
    vector = session.search(SearchQuery(text='forest')).vector
    for z in (12, 15):
        z, x, y = tile_of(field, z)
        content = heat.tile('k', vector, z, x, y)
        assert content is not None
        alpha = np.asarray(Image.open(io.BytesIO(content)).convert('RGBA'))[..., 3].astype(float)
        box = tile_box(z, x, y)
        column, row = np.meshgrid(np.arange(256) + 0.5, np.arange(256) + 0.5)
        to_field = Transformer.from_crs('EPSG:3857', str(field.geobox.crs), always_xy=True)
        px, py = ~field.geobox.affine * to_field.transform(*(box.affine * (column, row)))
        whole = field.scores(vector[None]).values[0]
        inside = (px > 8) & (py > 8) & (px < field.plan.width - 8) & (py < field.plan.height - 8)
        expected = np.full((256, 256), np.nan)
        expected[inside] = whole[py[inside].astype(int), px[inside].astype(int)]
        known = np.isfinite(expected)
        _, low, high = heat.scores('k', vector)
        wanted = 255 * np.sqrt(np.clip((expected[known] - low) / (high - low), 0, 1))
        if heat.factor == 1 or z == 15:
            assert np.median(abs(alpha[known] - wanted)) < 4 and np.corrcoef(alpha[known], wanted)[0, 1] > 0.97
        far = (px < -16) | (py < -16) | (px > field.plan.width + 16) | (py > field.plan.height + 16)
        assert (alpha[far] == 0).all()
        missing = (px > 8) & (py > 8) & (px < 100) & (py < 100)
        assert not missing.any() or (alpha[missing] == 0).all()


def test_scenes_are_shown_from_their_own_pixels_where_they_are(url: str, field: Field) -> None:
    """A tile deep inside shows the scene's colours pixel by pixel; coarse ones show the preview; none beyond."""
    z, x, y = tile_of(field, 17)
    picture = np.asarray(Image.open(io.BytesIO(requests.get(f'{url}/scene/0/{z}/{x}/{y}.png', timeout=60).content)))
    column, row = np.meshgrid(np.arange(256) + 0.5, np.arange(256) + 0.5)
    to_field = Transformer.from_crs('EPSG:3857', str(field.geobox.crs), always_xy=True)
    px, py = ~field.geobox.affine * to_field.transform(*(tile_box(z, x, y).affine * (column, row)))
    scene = patchwork(640, 512)
    expected = scene[:, py.astype(int), px.astype(int)].transpose(1, 2, 0).astype(float)
    assert (picture[..., 3] == 255).all() and np.median(abs(picture[..., :3] - expected)) < 12
    assert requests.get(f'{url}/scene/0/{z}/0/0.png', timeout=60).status_code == 204
    z, x, y = tile_of(field, 11)
    assert requests.get(f'{url}/scene/0/{z}/{x}/{y}.png', timeout=60).headers['content-type'] == 'image/png'


def test_doubts_are_apart_and_between_two_of_the_words(url: str, field: Field) -> None:
    """Ten places inside the field, each with the two words that it lies between; one word makes no doubt."""
    found = requests.get(f'{url}/api/doubts/0', params={'words': 'forest, water, a town'}, timeout=60).json()
    outline = field.geobox.extent.to_crs('EPSG:4326').geom
    assert len(found) == 10 and len({(d['lon'], d['lat']) for d in found}) == 10
    assert all(outline.contains(shapely.Point(d['lon'], d['lat'])) for d in found)
    assert all(set(d['between'].split(' and ')) < {'forest', 'water', 'a town'} for d in found)
    paths = requests.get(f'{url}/api/doubts/0', params={'words': '/etc/passwd,x.yaml'}, timeout=60)
    assert paths.status_code == 200 and len(paths.json()) == 10  # words, and no path of a file
    refusal = requests.get(f'{url}/api/doubts/0', params={'words': 'forest'}, timeout=60)
    assert refusal.status_code == 400 and '2 to 50' in refusal.json()['error']


@pytest.mark.parametrize(
    ('crs', 'corner', 'expected', 'simple'),
    [
        ('EPSG:32633', (500_000, 5_500_000), (15.0, 16.4, 48.7, 49.7), True),
        ('EPSG:32601', (450_000, 5_600_000), (-177.7, -176.3, 49.6, 50.6), True),
        ('EPSG:32601', (200_000, 5_600_000), (178.8, 180.2, 49.6, 50.6), False),
        ('EPSG:32660', (700_000, 5_600_000), (179.8, 181.3, 49.6, 50.6), False),
        ('EPSG:3413', (-50_000, 50_000), (-180.0, 180.0, 89.3, 90.0), False),
        ('EPSG:3031', (-50_000, 50_000), (-180.0, 180.0, -90.0, -89.3), False),
    ],
)
def test_bounds_of_fields_hold_everywhere(
    crs: str, corner: tuple[float, float], expected: tuple[float, float, float, float], simple: bool
) -> None:
    """West, east, south and north of 100 km, also over 180 degrees and the poles; tiles of the whole world find it."""
    box = GeoBox((100, 100), Affine(1000, 0, corner[0], 0, -1000, corner[1]), crs)
    (west, south, east, north), clipped = degrees_of(box)
    assert (west, east, south, north) == pytest.approx(expected, abs=0.3) and clipped is simple
    if abs(north) < 85:
        assert FieldGrid(box).under(tile_box(0, 0, 0)) is not None


# --- photos


def test_photos_stand_beside_the_items_of_their_place(
    store: PairStore, clip: Any, model: Model, tmp_path: Path
) -> None:
    """Photos inside a tile are those that were taken there; another licence, or another file, is not shown."""
    copied = Path(shutil.copytree(store.path, tmp_path / 'pairs'))
    photos = gpd.read_parquet(copied / 'photos.parquet')
    tiles = PairStore(copied).tiles
    index = tmp_path / 'index'
    build_index(str(copied), index, model, MODEL)
    with served(open_session(index, [], copied)) as url:
        rows = {}
        for row in range(len(tiles)):
            rows[row] = requests.get(f'{url}/api/photos/{row}', timeout=60).json()
        shown = [photo for found in rows.values() for photo in found]
        assert shown and all(photo['shown'] for photo in shown)
        picture = requests.get(f'{url}/api/photo/{shown[0]["row"]}.jpg', timeout=60)
        assert Image.open(io.BytesIO(picture.content)).size[0] > 32
        session = open_session(index, [], copied)
        for row, found in rows.items():
            inside = photos.geometry.within(session.items.geometry.iloc[row]).to_numpy().nonzero()[0][:24]
            assert set(inside) <= {photo['row'] for photo in found}
        for licence, uri, may in (
            ('CC-BY-4.0', None, True),
            ('All rights reserved', None, False),
            (None, 'https://example.org/1.jpg', False),
            (None, str(write_scene(tmp_path / 'other.tif', patchwork(64, 64))), True),
        ):
            ground = session.photos
            assert ground is not None
            changed = photos.copy()
            changed.loc[0, 'licence'] = licence
            changed.loc[0, 'uri'] = uri or changed.loc[0, 'uri']
            ground._photos = changed
            assert ground.may_show(0) is may
            assert bool(ground.picture(0)) is (may and uri is None)  # another file than was paired is not shown


# --- safety


def test_requests_for_other_hosts_and_from_other_sites_are_refused(url: str) -> None:
    """A name of elsewhere that leads here, and a site that asks for another; no answer allows other origins."""
    port = url.rsplit(':', 1)[1]
    for headers, status in (
        ({'Host': f'evil.example:{port}'}, 400),
        ({'Host': ''}, 400),
        ({'Sec-Fetch-Site': 'cross-site'}, 403),
        ({'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Mode': 'navigate'}, 403),
        ({'Host': f'[::1:{port}'}, 400),
        ({'Host': f'localhost:{port}'}, 200),
    ):
        answer = requests.get(f'{url}/api/about', headers={**headers, 'Origin': 'http://evil.example'}, timeout=60)
        assert answer.status_code == status
        assert not any(name.lower().startswith('access-control') for name in answer.headers)
        assert "default-src 'none'" in answer.headers['content-security-policy']
        assert answer.headers['x-content-type-options'] == 'nosniff'


def test_a_link_leads_to_the_page(url: str) -> None:
    """From any site, as it shows nothing to that site; to the page alone."""
    link = {'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Mode': 'navigate'}
    assert requests.get(f'{url}/', headers=link, timeout=60).status_code == 200
    assert requests.get(f'{url}/', headers={'Sec-Fetch-Site': 'cross-site'}, timeout=60).status_code == 403


def test_another_host_asks_for_the_token(session: Session) -> None:
    """Without it nothing is shown; with it in the address a cookie opens the rest."""
    with served(session, token='a-token') as url:
        assert requests.get(f'{url}/', timeout=60).status_code == 403
        assert requests.get(f'{url}/static/app.js', timeout=60).status_code == 403
        assert requests.get(f'{url}/?token=wrong', timeout=60).status_code == 403
        browser = requests.Session()
        first = browser.get(f'{url}/?token=a-token', timeout=60)
        assert first.status_code == 200 and 'HttpOnly' in first.history[0].headers['set-cookie']
        assert first.url == f'{url}/'  # the token is in no address bar
        assert browser.get(f'{url}/api/about', timeout=60).status_code == 200


def polygon(corners: int) -> dict[str, Any]:
    """A circle of so many corners."""
    turn = np.linspace(0, 2 * np.pi, corners)
    return {'type': 'Polygon', 'coordinates': [np.stack([np.cos(turn), np.sin(turn)], axis=1).round(3).tolist()]}


def bomb() -> str:
    """A picture of 100 million pixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new('1', (10_000, 10_000)).save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()


MANY = {'type': 'MultiPolygon', 'coordinates': [polygon(4)['coordinates']] * 10_000}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({}, 'one of them only'),
        ({'text': 'a', 'like': 1}, 'one of them only'),
        ({'text': ''}, 'text'),
        ({'text': 'x' * 10_000}, 'text'),
        ({'text': '-water'}, 'not wanted'),
        ({'text': 'a', 'k': 0}, 'k'),
        ({'text': 'a', 'k': 10**9}, 'k'),
        ({'text': 'a', 'path': '/etc/passwd'}, 'path'),
        ({'lonlat': [400, 0]}, 'lonlat'),
        ({'like': 10**9}, 'no item'),
        ({'like': -1}, 'like'),
        ({'picture': '!!!'}, 'cannot be read'),
        ({'picture': base64.b64encode(b'%!PS').decode()}, 'The picture'),
        ({'picture': base64.b64encode(b'\x89PNG\r\n\x1a\n' + bytes(40)).decode()}, 'The picture'),
        ({'picture': bomb()}, '30 million pixels'),
        ({'text': 'a', 'begin': 'yesterday'}, 'begin'),
        ({'text': 'a', 'begin': '2050-01-01T00:00:00Z'}, 'widen the filter'),
        ({'text': 'a', 'region': polygon(MOST_CORNERS + 1)}, 'corners'),
        (
            {'text': 'a', 'region': {'type': 'MultiPolygon', 'coordinates': [polygon(4)['coordinates']] * 10_000}},
            'region',
        ),
        ({'text': 'a', 'begin': '0001-01-01T00:00:00+14:00'}, 'no time of UTC'),
        ({'text': 'a', 'region': {'type': 'Polygon', 'coordinates': [[[0, 0], [10**400, 0], [0, 1]]]}}, 'read'),
        ({'text': 'a', 'region': {'type': 'Point', 'coordinates': [0, 0]}}, 'no polygon'),
        ({'text': 'a', 'region': {'type': 'Polygon'}}, 'region'),
        ({'text': 'a', 'region': {'type': 'Polygon', 'coordinates': 'x'}}, 'GeoJSON'),
        ({'text': 'a', 'region': {'type': 'Polygon', 'coordinates': [[[0, 0], [1e9, 0], [0, 1]]]}}, 'region'),
    ],
)
def test_bad_searches_are_one_sentence(url: str, content: dict[str, Any], words: str) -> None:
    """Of any kind, and the server goes on."""
    answer = search(url, **content)
    assert answer.status_code == 400 and words in answer.json()['error'] and '\n' not in answer.json()['error']
    assert 'Traceback' not in answer.text and len(answer.text) < 1000


def test_a_region_across_the_date_line_is_understood(url: str, session: Session) -> None:
    """A map that was turned around the Earth gives longitudes beyond 180 degrees, which come back."""
    west, south, east, north = session.items.total_bounds
    boxes = [shapely.box(west + turns, south, east + turns, north) for turns in (-360, 0, 360)]
    for box in (*boxes, shapely.box(-100, -80, 100, 80), shapely.box(-228, -85, 168, 85), shapely.box(-200, 0, 20, 80)):
        around = json.loads(shapely.to_geojson(box))
        assert len(search(url, text='forest', k=500, region=around).json()['answers']['features']) == len(session.items)
    across = json.loads(shapely.to_geojson(shapely.box(170, -20, 190, 20)))
    assert 'widen the filter' in search(url, text='forest', region=across).json()['error']


def test_numbers_and_ids_lead_nowhere_else(url: str) -> None:
    """Rows, fields, tiles, searches, exports and files that are not there."""
    found = search(url, text='forest').json()
    key, query = found['heat'], found['query']
    for path in (
        '/api/thumb/999999.jpg', '/api/thumb/-1.jpg', '/api/thumb/..%2f..%2fetc%2fpasswd.jpg', '/api/photo/999999.jpg',
        '/api/photos/999999', '/api/photos/-1', '/heat/none/0/1/0/0.png', f'/heat/{key}/7/1/0/0.png',
        f'/heat/{key}/0/99/0/0.png', f'/heat/{key}/0/3/9/0.png', '/scene/0/3/-1/0.png', '/scene/9/1/0/0.png',
        f'/api/export/{query}.html', '/api/export/none.csv', '/static/../app.py', '/static/%2e%2e/app.py', '/docs',
        '/openapi.json', '/api/doubts/0?words=', '/api/doubts/5?words=a,b', '/.env',
    ):  # fmt: skip
        answer = requests.get(f'{url}{path}', timeout=60)
        assert answer.status_code in (400, 404, 422), path
        assert 'Traceback' not in answer.text and 'root:' not in answer.text


def test_endless_requests_are_refused_before_they_are_read(url: str) -> None:
    """A body that is too large, or that does not say how large it is."""
    assert requests.post(f'{url}/api/search', data=b' ' * (MOST_BODY + 1), timeout=60).status_code == 413
    assert requests.post(f'{url}/api/search', data=iter([b'{}']), timeout=60).status_code == 413
    host, port = url[7:].split(':')
    with socket.create_connection((host, int(port))) as connection:  # both, of which chunks count
        head = f'POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n'
        connection.sendall(head.encode() + b'2\r\n{}\r\n')
        assert connection.recv(100).split()[1] in (b'413', b'400')


def test_a_field_that_vanishes_while_it_is_served_is_one_sentence(
    index: Path, field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory is still shown; what must be read says so, and the server goes on."""
    copied = Path(shutil.copytree(field.path, tmp_path / 'field'))
    monkeypatch.setattr('grafalign.explore.heat._KEPT_BYTES', 40_000)  # as of a larger field: cells are read from disk
    session = open_session(index, [copied])
    with served(session) as url:
        key = search(url, text='forest').json()['heat']
        z, x, y = tile_of(field, 16)
        assert requests.get(f'{url}/heat/{key}/0/{z}/{x}/{y}.png', timeout=60).status_code == 200
        shutil.rmtree(copied)
        answer = requests.get(f'{url}/heat/{key}/0/{z}/{x}/{y}.png', timeout=60)
        assert answer.status_code == 400 and str(copied) in answer.json()['error']
        assert requests.get(f'{url}/api/about', timeout=60).status_code == 200


def test_twenty_people_at_once_get_their_own_answers(url: str) -> None:
    """Searches side by side do not mix."""
    words = [f'{a} {b}' for a in ('green', 'blue', 'red', 'dry') for b in ('forest', 'water', 'town', 'field', 'road')]
    alone = [search(url, text=text, k=5).json()['answers'] for text in words]
    together: list[Any] = [None] * len(words)

    def ask(i: int) -> None:
        together[i] = search(url, text=words[i], k=5).json()['answers']

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


# --- the command


def test_the_command_serves_until_it_is_stopped(index: Path, field: Field) -> None:
    """It prints its address, answers there, and ends at Ctrl-C without a traceback."""
    import signal

    process = start('explore', index, '--field', field.path, '--port', '0')
    assert process.stderr is not None
    address = ''
    while not address:
        line = process.stderr.readline()
        assert line, 'it ended'
        address = ''.join(re.findall(r'http://127\.0\.0\.1:\d+/', line))
    assert requests.get(address, timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    code, err = finish(process)
    assert code in (0, 130) and 'Traceback' not in err


def test_what_cannot_be_served_is_one_sentence(index: Path, field: Field, command: Command, tmp_path: Path) -> None:
    """A port in use, an address of elsewhere, no index, no field, a field of another model."""
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        refused(command('explore', index, '--port', port), f'--port {port}', 'another --port')
    refused(command('explore', index, '--host', '203.0.113.7', '--port', 0), '203.0.113.7')
    refused(command('explore', tmp_path / 'no', '--port', 0), tmp_path / 'no')
    refused(command('explore', index, '--field', tmp_path / 'no', '--port', 0), tmp_path / 'no')
    other = Path(shutil.copytree(field.path, tmp_path / 'field'))
    marker = json.loads((other / 'field.json').read_text())
    marker['plan']['model_digest'] = 'f' * 32
    (other / 'field.json').write_text(json.dumps(marker))
    refused(command('explore', index, '--field', other, '--port', 0), other, 'another model', index)


# --- browsers


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    driver = pytest.importorskip('playwright.sync_api', reason='no browser driver: pip install playwright')
    if CHROMIUM is None:
        pytest.skip('no browser: install Chromium')
    flags = ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']
    with driver.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end there was no error, and no request left this machine."""
    trouble: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(**options: Any) -> Any:
        context = browser.new_context(accept_downloads=True, **options)
        context.set_default_timeout(1000 * DEADLINE_S)
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda m: m.type in ('error', 'warning') and trouble.append(m.text))
        page.on('pageerror', lambda error: trouble.append(str(error)))
        page.on('request', lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector('body[data-ready]')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not trouble
    assert {address.split('/')[2] for address in asked if not address.startswith(('data:', 'blob:'))} == {url[7:]}


@pytest.mark.parametrize('view', [(1280, 800, 'light'), pytest.param((390, 844, 'dark'), marks=pytest.mark.slow)])
def test_a_browser_searches_draws_and_exports(
    opened: Callable[..., Any], session: Session, view: tuple[int, int, str], tmp_path: Path
) -> None:
    """Type, see tiles and heat, draw a region with the mouse, switch heat off and on, choose, export, and more."""
    width, height, scheme = view
    page = opened(viewport={'width': width, 'height': height}, color_scheme=scheme)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    with page.expect_response(lambda r: '/heat/' in r.url and r.status == 200):
        page.fill('#words', 'forest')
        page.click('#go')
    page.wait_for_selector('#answers li:nth-child(5)')
    assert page.locator('#answers img').first.evaluate('image => image.decode().then(() => image.naturalWidth)') > 0
    everything = page.locator('#answers li').count()
    page.click('#filters summary')
    page.click('#draw')
    box = page.locator('#map').bounding_box()
    for across, down in ((0.4, 0.35), (0.6, 0.35), (0.6, 0.55), (0.4, 0.55)):
        page.mouse.click(box['x'] + across * box['width'], box['y'] + down * box['height'])
    with page.expect_response('**/api/search'):
        page.keyboard.press('Enter')
    page.wait_for_selector(f'#answers li:nth-child({everything})', state='detached')
    inside = page.locator('#answers li').count()
    assert inside > 0
    page.uncheck('#heat')
    assert page.evaluate("document.querySelector('#heat').checked") is False
    page.check('#heat')
    page.fill('#fade', '0.3')
    page.click('#answers li:nth-child(1) button')
    page.wait_for_selector('#detail:not([hidden])')
    with page.expect_download() as download:
        page.click('#csv')
    download.value.save_as(tmp_path / 'answers.csv')
    assert len(pd.read_csv(tmp_path / 'answers.csv')) == inside
    page.click('#everywhere')
    page.wait_for_selector(f'#answers li:nth-child({everything})')
    page.click('#answers li:nth-child(2) button')
    page.click('#like')
    page.wait_for_selector('#answers li:first-child span:text("1.000")')


def test_the_last_search_is_the_one_that_is_shown(opened: Callable[..., Any]) -> None:
    """An answer that comes late does not take the place of a later search's, nor photos those of another item."""
    page = opened(viewport={'width': 1280, 'height': 800})
    held = []

    def hold(route: Any) -> None:
        if 'slow' in (route.request.post_data or ''):
            held.append(route)
        else:
            route.continue_()

    page.route('**/api/search', hold)
    for words in ('slow one', 'fast one'):
        page.fill('#words', words)
        page.click('#go')
    page.wait_for_selector('#answers li')
    shown = page.get_attribute('#csv', 'href')
    for route in held:
        with contextlib.suppress(Exception):  # the page has given it up
            route.continue_()
    page.wait_for_timeout(500)
    assert page.get_attribute('#csv', 'href') == shown and len(held) == 1


def page_middle(session: Session) -> list[float]:
    """Where the map begins: the middle of the field."""
    west, south, east, north = session.about()['fields'][0]['bounds']
    return [(west + east) / 2, (south + north) / 2]


def test_the_page_works_with_the_keyboard_alone(opened: Callable[..., Any], session: Session) -> None:
    """Search, the map's view as region, an answer, points in the map's middle, doubts: without a mouse."""
    page = opened(viewport={'width': 1280, 'height': 800})
    page.keyboard.type('water')  # the field has the focus
    page.keyboard.press('Enter')
    page.wait_for_selector('#answers li')

    def press(selector: str) -> None:
        page.focus(selector)
        page.keyboard.press('Enter')

    press('#filters summary')
    with page.expect_response('**/api/search'):
        press('#view')
    page.wait_for_selector('#status:has-text("answers")')
    press('#answers li:nth-child(1) button')
    page.wait_for_selector('#detail:not([hidden])')
    with page.expect_request('**/api/search') as asked:
        press('#place')
        page.keyboard.press('Enter')
    assert asked.value.post_data_json['lonlat'] == pytest.approx(page_middle(session), abs=0.2)
    press('#points summary')
    page.focus('#classes')
    page.keyboard.type('forest, water')
    page.keyboard.press('Tab')
    press('#middle')
    press('#doubts')
    page.wait_for_selector('#marked li:nth-child(11)')
    with page.expect_download() as download:
        press('#save')
    points = json.loads(Path(download.value.path()).read_text())['features']
    assert [point['properties'] for point in points] == [{'class': 'forest'}]


def test_hostile_names_do_nothing(session: Session, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup in an item's name and in a query is text on the page, and no script runs."""
    evil = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>'
    items = session.catalog.items.copy()
    items['item_id'] = evil
    monkeypatch.setattr(type(session.catalog), 'items', property(lambda _self: items))
    with served(session) as address:
        page = browser.new_page()
        page.set_default_timeout(1000 * DEADLINE_S)
        page.goto(address)
        page.wait_for_selector('body[data-ready]')
        page.fill('#words', evil)
        page.click('#go')
        page.wait_for_selector('#answers li')
        page.click('#answers li:nth-child(1) button')
        page.wait_for_selector('#detail:not([hidden])')
        assert page.inner_text('#detail-name') == evil
        assert page.evaluate('window.evil') is None and page.locator('#panel script').count() == 0
        page.close()
