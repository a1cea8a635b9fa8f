"""Behind a proxy: whatever is fetched takes the way that the environment names, and nothing else changes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from grafalign.errors import RemoteError
from grafalign.photos.exif import PhotoError
from grafalign.photos.fetch import Fetcher, RemoteSettings
from grafalign.photos.opening import open_stream
from grafalign.scenes import RangeReader, SceneSource, load_scenes
from grafalign.scenes.raster import Raster
from grafalign.scenes.signing import Signer
from grafalign.scenes.source import SignSettings
from grafalign.web.connections import Connections
from grafalign.web.proxies import proxy_of
from grafalign.web.ranges import RangeError
from tests.photo_server import PhotoServer, serving
from tests.proxy_server import ProxyServer, proxy_server
from tests.range_server import RangeServer
from tests.stac_server import stac_server
from tests.test_exif import encoded, picture
from tests.token_server import token_server

PHOTO = encoded(picture(seed=1))
NAMES = [f'{scheme}_proxy' for scheme in ('http', 'https', 'all', 'no')]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the test run has none."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope='module')
def photos() -> Iterator[PhotoServer]:
    """A host of photos."""
    with serving({'a.jpg': PHOTO}) as server:
        yield server


@pytest.fixture
def proxy(photos: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyServer]:
    """A proxy that alone knows where `data.example` is."""
    with proxy_server({'data.example': photos.server_port}) as server:
        monkeypatch.setenv('HTTP_PROXY', server.address())
        yield server


def test_photos_and_tables_come_through_the_proxy(proxy: ProxyServer) -> None:
    """A name that only the proxy can look up gives its photo, and its table."""
    with Fetcher(RemoteSettings(retries=0)) as fetcher:
        assert fetcher.fetch('http://data.example/photo/a.jpg') == PHOTO
        assert fetcher.fetch('http://data.example/to/http://data.example/photo/a.jpg') == PHOTO
    with open_stream('http://data.example/photo/a.jpg') as stream:
        assert stream.read(len(PHOTO)) == PHOTO
    assert set(proxy.asked) == {'data.example'} and len(proxy.asked) >= 3


def test_scenes_come_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL's reads go where ours go: a raster is opened and read by ranges through the proxy."""
    pixels = np.arange(512 * 512, dtype='uint16').reshape(1, 512, 512)
    profile = {'driver': 'COG', 'dtype': 'uint16', 'count': 1, 'height': 512, 'width': 512, 'blocksize': 128}
    place = {'crs': 'EPSG:32632', 'transform': from_origin(500000, 5000000, 10, 10)}
    with rasterio.open(tmp_path / 'a.tif', 'w', **profile, **place) as file:
        file.write(pixels)
    with RangeServer(tmp_path) as server, proxy_server({'scenes.example': server.port}) as proxy:
        monkeypatch.setenv('http_proxy', proxy.address())
        reader = RangeReader(retries=0, private=False)
        whole = (tmp_path / 'a.tif').read_bytes()
        assert reader.read('http://scenes.example/a.tif', 100, 50) == whole[100:150]
        raster = Raster('http://scenes.example/a.tif', reader, mask=False)
        assert raster.dtypes == ('uint16',)
        raster.close()
        assert set(proxy.asked) == {'scenes.example'} and len(proxy.asked) == reader.traffic.requests


def test_searches_and_tokens_come_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A STAC API, a static catalog's children and a token service are reached as everything else is."""
    item = {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': 'one',
        'collection': 's2',
        'geometry': {'type': 'Polygon', 'coordinates': [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]},
        'bbox': [0, 0, 1, 1],
        'properties': {'datetime': '2024-01-01T00:00:00Z'},
        'assets': {'red': {'href': 'https://data.example/a.tif'}},
        'links': [],
    }
    with stac_server([item]) as api, token_server() as tokens:
        api.root = 'http://api.example'
        ports = {'api.example': api.server_port, 'tokens.example': tokens.server_port}
        with proxy_server(ports) as proxy:
            monkeypatch.setenv('all_proxy', proxy.address())
            source = SceneSource(api=api.root, collections=['s2'], cache=tmp_path / 'cache', retries=0)
            assert [s.item_id for s in load_scenes(source, (0, 0, 2, 2))] == ['one']
            settings = SignSettings(tokens='http://tokens.example/token', blob_hosts='blobs.example')
            signed = Signer(settings, retries=0).sign('https://blobs.example/account/naip/a.tif')
            assert signed.startswith('https://blobs.example/account/naip/a.tif?')
            assert set(proxy.asked) == {'api.example', 'tokens.example'}
    catalog = {'type': 'Catalog', 'id': 'c', 'stac_version': '1.0.0', 'description': 'c'}
    links = [{'rel': 'child', 'href': 'http://catalog.example/photo/child.json'}]
    (tmp_path / 'catalog.json').write_text(json.dumps({**catalog, 'links': links}))
    child = {**catalog, 'links': [{'rel': 'item', 'href': 'http://catalog.example/photo/item.json'}]}
    documents = {'child.json': json.dumps(child).encode(), 'item.json': json.dumps(item).encode()}
    with serving(documents) as server, proxy_server({'catalog.example': server.server_port}) as proxy:
        monkeypatch.setenv('all_proxy', proxy.address())
        source = SceneSource(catalog=tmp_path / 'catalog.json')
        assert [s.item_id for s in load_scenes(source, (0, 0, 2, 2))] == ['one']
        assert set(proxy.asked) == {'catalog.example'}


def test_hosts_of_no_proxy_are_reached_directly(
    proxy: ProxyServer, photos: PhotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY names hosts, domains and networks, as for requests."""
    monkeypatch.setenv('NO_PROXY', 'intranet.example,127.0.0.0/8')
    with Fetcher(RemoteSettings(retries=0, private_addresses=True)) as fetcher:
        assert fetcher.fetch(photos.url('/photo/a.jpg')) == PHOTO
    assert proxy.asked == []
    assert proxy_of('http://host.intranet.example/a') is None
    assert proxy_of('http://elsewhere.example/a') == proxy.address()
    monkeypatch.setenv('NO_PROXY', '*')
    assert proxy_of('http://elsewhere.example/a') is None


def test_tls_goes_through_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over https the proxy sees names only; the host's certificate is checked as without one."""
    if shutil.which('openssl') is None:
        pytest.skip('making a certificate takes openssl')
    words = 'req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext subjectAltName=DNS:data.example'
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    subprocess.run(['openssl', *words.split(), '-keyout', key, '-out', certificate], check=True, capture_output=True)
    both = tmp_path / 'both.pem'
    both.write_text(key.read_text() + certificate.read_text())
    with serving({'a.jpg': PHOTO}, both) as server, proxy_server({'data.example': server.server_port}) as proxy:
        monkeypatch.setenv('https_proxy', proxy.address())
        with Fetcher(RemoteSettings(retries=0)) as fetcher, pytest.raises(PhotoError, match='certificate'):
            fetcher.fetch('https://data.example/photo/a.jpg')
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
        slow = RemoteSettings(retries=0, timeout_s=0.5)
        with Fetcher(slow) as fetcher:
            assert fetcher.fetch('https://data.example/photo/a.jpg') == PHOTO
            with pytest.raises(PhotoError, match='timed out'):
                fetcher.fetch('https://data.example/drip-body')
        assert set(proxy.asked) == {'data.example'}


def test_a_proxy_may_want_a_password(photos: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password of the proxy's address are sent to it, for plain and tunnelled requests, and to nobody else."""
    with proxy_server({'data.example': photos.server_port}, 'me:s@crt') as proxy:
        monkeypatch.setenv('http_proxy', proxy.address('me:s%40crt'))
        with Fetcher(RemoteSettings(retries=0)) as fetcher:
            assert fetcher.fetch('http://data.example/photo/a.jpg') == PHOTO
        monkeypatch.setenv('https_proxy', proxy.address('me:wrong'))
        with Fetcher(RemoteSettings(retries=0)) as fetcher, pytest.raises(PhotoError, match=r'proxy.*407'):
            fetcher.fetch('https://data.example/photo/a.jpg')


def test_private_addresses_stay_refused(proxy: ProxyServer, photos: PhotoServer) -> None:
    """What data names by a private address is refused before the proxy is asked for it."""
    proxy.hosts['127.0.0.1'] = photos.server_port
    for host in ('127.0.0.1', 'localhost', '10.0.0.7', '[::1]', '169.254.169.254'):
        with Fetcher(RemoteSettings(retries=0)) as fetcher, pytest.raises(PhotoError, match='private address'):
            fetcher.fetch(f'http://{host}/photo/a.jpg')
        with pytest.raises(RangeError, match='private address'):
            RangeReader(private=False, retries=0).read(f'http://{host}/a.tif', 0, 1)
    assert proxy.asked == []


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOCKS is told to be no kind that is used, and a proxy that does not answer is told to be away."""
    monkeypatch.setenv('http_proxy', 'socks5://127.0.0.1:1080')
    with Fetcher(RemoteSettings(retries=0)) as fetcher, pytest.raises(PhotoError, match='socks5'):
        fetcher.fetch('http://data.example/a.jpg')
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    with Fetcher(RemoteSettings(retries=0)) as fetcher, pytest.raises(PhotoError, match=r'no connection|proxy'):
        fetcher.fetch('http://data.example/a.jpg')
    with pytest.raises(RemoteError, match=r'data\.example'), open_stream('http://data.example/a.csv'):
        pass


def test_connections_are_kept_through_a_proxy(proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same address gets the same pools, and another environment others."""
    connections = Connections(2)
    first = connections.pools_for('http://data.example/a')
    assert connections.pools_for('http://data.example/b') is first
    monkeypatch.delenv('HTTP_PROXY')
    assert connections.pools_for('http://data.example/a') is not first
