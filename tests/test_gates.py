"""The two gates: no file of this machine, no private address and no program is reached because data says so."""

from __future__ import annotations

import http.server
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from grafalign.datasets.pictures import picture_metadata, read_picture
from grafalign.errors import GrafalignError
from grafalign.escapes import csv_cell, fenced, markdown, printable
from grafalign.foreign import ForeignFileError, below, open_plain, parse_json
from grafalign.photos import PhotoSource, read_photos
from grafalign.photos.exif import PhotoError, read_metadata
from grafalign.photos.tars import read_index
from grafalign.scenes import load_scenes
from grafalign.scenes.signing import Signer
from grafalign.scenes.source import SceneSource, SignSettings
from grafalign.search.query import read_region
from grafalign.web.addresses import host_of, is_public
from tests.stac_server import stac_server


class Heard(http.server.ThreadingHTTPServer):
    """A private host that notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.2', 0), _Listener)
        self.requests: list[tuple[str, str]] = []

    @property
    def root(self) -> str:
        """Its address."""
        return f'http://127.0.0.2:{self.server_port}'


class _Listener(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path))  # type: ignore[attr-defined]
        body = b'{"type": "FeatureCollection", "features": []}'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def victim() -> Iterator[Heard]:
    """A host that nobody may ask."""
    server = Heard()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def secret(folder: Path) -> Path:
    """A file that must not be read."""
    path = folder / 'secret.txt'
    path.write_bytes(b'root:x:0:0:root:/root:/bin/bash\n' * 40)
    return path


def references(folder: Path, victim: Heard) -> dict[str, str]:
    """Descriptions that make GDAL read another file, or ask an address."""
    raw = (
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{secret(folder)}</SourceFilename>'
        '<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>30</LineOffset></VRTRasterBand></VRTDataset>'
    )
    remote = (
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename>/vsicurl/{victim.root}/a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    wms = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{victim.root}/tms/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        '<DataWindow><UpperLeftX>-1</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX>'
        '<LowerRightY>-1</LowerRightY><TileLevel>1</TileLevel></DataWindow><Projection>EPSG:3857</Projection>'
        '<BlockSizeX>8</BlockSizeX><BlockSizeY>8</BlockSizeY><BandsCount>3</BandsCount></GDAL_WMS>'
    )
    wcs = f'<WCS_GDAL><ServiceURL>{victim.root}/wcs?</ServiceURL><CoverageName>c</CoverageName></WCS_GDAL>'
    wmts = f'<GDAL_WMTS><GetCapabilitiesUrl>{victim.root}/wmts</GetCapabilitiesUrl><Layer>a</Layer></GDAL_WMTS>'
    gti = f'<GDALTileIndexDataset><IndexDataset>/vsicurl/{victim.root}/i.gpkg</IndexDataset></GDALTileIndexDataset>'
    return {'raw': raw, 'remote': remote, 'wms': wms, 'wcs': wcs, 'wmts': wmts, 'gti': gti}


@pytest.mark.parametrize('kind', ['raw', 'remote', 'wms', 'wcs', 'wmts', 'gti'])
@pytest.mark.parametrize('suffix', ['.tif', '.jp2', '.jpg', '.png'])
def test_a_picture_is_what_its_first_bytes_say(tmp_path: Path, victim: Heard, kind: str, suffix: str) -> None:
    """Whatever its name: no other file is read, nobody is asked; as a file and as bytes."""
    path = tmp_path / f'x{suffix}'
    path.write_text(references(tmp_path, victim)[kind])
    for source in (path, path.read_bytes()):
        with pytest.raises(GrafalignError, match='cannot be read as a picture'):
            read_picture(source, path.name)
        with pytest.raises(GrafalignError, match='cannot be read as a picture'):
            picture_metadata(source, path.name)
    assert read_metadata(path).problem == 'not an image' and victim.requests == []


def test_postscript_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand it to Ghostscript."""
    marker = tmp_path / 'ran'
    (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {marker}\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    path = tmp_path / 'b.jpg'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n')
    with pytest.raises(GrafalignError, match='not an image'):
        read_picture(path, 'b.jpg')
    assert read_metadata(path).problem == 'not an image' and not marker.exists()


@pytest.mark.parametrize('where', ['table', 'region'])
def test_a_table_or_region_is_no_description_of_others(tmp_path: Path, victim: Heard, where: str) -> None:
    """An OGR VRT named .geojson neither reads local files nor asks addresses."""
    for source in (f'CSV:{secret(tmp_path)}', f'/vsicurl/{victim.root}/latest/meta-data'):
        path = tmp_path / 't.geojson'
        path.write_text(
            f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{source}</SrcDataSource></OGRVRTLayer>'
            '</OGRVRTDataSource>'
        )
        with pytest.raises(GrafalignError, match='is XML') as error:
            read_photos(PhotoSource(table=str(path))) if where == 'table' else read_region(path)
        assert 'root:x' not in str(error.value)
    assert victim.requests == []


@pytest.mark.parametrize('kind', ['url', 'link'])
def test_a_geojson_makes_nobody_fetch_its_reference_system(tmp_path: Path, victim: Heard, kind: str) -> None:
    """GDAL would ask the address that `crs` names; written in any way."""
    point = {'type': 'Feature', 'properties': {'uri': 'a.jpg'}, 'geometry': {'type': 'Point', 'coordinates': [1, 2]}}
    crs = {'type': kind, 'properties': {'url': f'{victim.root}/crs', 'href': f'{victim.root}/crs'}}
    text = json.dumps({'type': 'FeatureCollection', 'crs': crs, 'features': [point]})
    for spelled in (text, text.replace('"crs"', '"\\u0063rs"', 1)):
        (tmp_path / 't.geojson').write_text(spelled)
        for read in (
            lambda: read_photos(PhotoSource(table=str(tmp_path / 't.geojson'))),
            lambda: read_region(tmp_path / 't.geojson'),
        ):
            with pytest.raises(GrafalignError, match='reference system'):
                read()
    assert victim.requests == []


def test_what_lies_beside_a_raster_is_not_opened(tmp_path: Path, victim: Heard) -> None:
    """Overviews, masks and metadata in side-cars may be of any driver, and name anything."""
    from grafalign.scenes import RangeReader
    from grafalign.scenes.opening import SceneReadError
    from grafalign.scenes.raster import Raster

    path = tmp_path / 'a.tif'
    profile = {'driver': 'GTiff', 'count': 1, 'width': 256, 'height': 256, 'dtype': 'uint8', 'crs': 'EPSG:32632'}
    transform = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    with rasterio.open(path, 'w', **profile, transform=transform) as file:
        file.write(np.full((1, 256, 256), 7, 'uint8'))
    vrt = references(tmp_path, victim)['remote']
    (tmp_path / 'a.tif.ovr').write_text(vrt)
    (tmp_path / 'a.tif.aux.xml').write_text(
        '<PAMDataset><Metadata domain="overviews"><MDI key="Overview_file">'
        f'/vsicurl/{victim.root}/x.tif</MDI></Metadata></PAMDataset>'
    )
    assert (read_picture(path, 'a.tif') == 7).all()
    raster = Raster(str(path), RangeReader(), 40)
    assert raster.grid.width == 256
    raster.close()
    (tmp_path / 'a.tif.msk').write_text(vrt)
    with pytest.raises(SceneReadError, match='is XML'):
        Raster(str(path), RangeReader(), 40)
    with rasterio.open(tmp_path / 'b.tif', 'w', **profile, transform=transform) as file:
        file.update_tags(ns='OVERVIEWS', oVerview_File=f'{victim.root}/latest')
    with pytest.raises(SceneReadError, match='names another file'):
        Raster(str(tmp_path / 'b.tif'), RangeReader(), 40)
    assert victim.requests == []


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    """Devices, pipes, folders and files of the kernel are refused at once."""
    os.mkfifo(tmp_path / 'pipe')
    for path in ('/dev/zero', '/dev/full', '/proc/self/environ', '/sys/kernel/notes', tmp_path / 'pipe', tmp_path):
        if Path(path).exists():
            with pytest.raises(ForeignFileError, match='not a file'):
                open_plain(path)
            assert read_metadata(Path(path)).problem == 'not a file'
    (tmp_path / 'large').write_bytes(bytes(2000))
    with pytest.raises(ForeignFileError, match='more than'):
        open_plain(tmp_path / 'large', 1000)


@pytest.mark.parametrize('name', ['../x', '/etc/passwd', 'a/../../x', '', 'a\0b', 'a\\b'])
def test_names_of_others_stay_below_their_folder(tmp_path: Path, name: str) -> None:
    """Absolute, climbing and odd names lead nowhere."""
    with pytest.raises(ForeignFileError):
        below(tmp_path, name)
    assert below(tmp_path, 'tiles/0.tar') == tmp_path / 'tiles' / '0.tar'


@pytest.mark.parametrize(
    'address',
    [
        '192.0.0.192',
        '192.0.0.8',
        '168.63.129.16',
        'fec0::1',
        '3fff::1',
        '2a00::5efe:7f00:1',
        '2001:db8::1',
        '::ffff:10.0.0.1',
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    """Whatever the Python: metadata services, site-local, documentation, ISATAP around a loopback address."""
    assert not is_public(address)
    assert is_public('8.8.8.8') and is_public('2606:4700:4700::1111')


@pytest.mark.parametrize(
    ('url', 'host'),
    [
        ('https://a.blob.core.windows.net/c/x.tif', 'a.blob.core.windows.net'),
        ('https://evil.example\\.blob.core.windows.net/c/x.tif', 'evil.example'),
        ('https://user@HOST.example:8080/x', 'host.example'),
        ('http://[::1]/x', '::1'),
    ],
)
def test_one_parser_says_what_the_host_is(url: str, host: str) -> None:
    """The one that connects."""
    assert host_of(url) == host


@pytest.mark.parametrize(
    'href',
    [
        'https://acct.evil.example\\.blob.core.windows.net/cont/x.tif',
        'https://evil.example:80\\x.blob.core.windows.net/cont/x.tif',
        'https://acct.blob.core.windows.net/../x.tif',
        'https://acct.blob.core.windows.net.evil.example/cont/x.tif',
        'http://acct.blob.core.windows.net/cont/x.tif',
    ],
)
def test_tokens_go_to_their_host_alone(href: str, victim: Heard) -> None:
    """Addresses that another reads otherwise get no token, and none is asked for."""
    assert Signer(SignSettings(tokens=f'{victim.root}/token'), retries=0).sign(href) == href
    assert victim.requests == []


# ---- STAC ------------------------------------------------------------------------------------------------------------


def item(name: str, **more: Any) -> dict[str, Any]:
    """An item around 11 E, 44 N."""
    ring = [[10, 43], [12, 43], [12, 45], [10, 45], [10, 43]]
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': name,
        'collection': 'c',
        'geometry': {'type': 'Polygon', 'coordinates': [ring]},
        'bbox': [10, 43, 12, 45],
        'properties': {'datetime': '2021-06-01T00:00:00Z'},
        'links': [],
        'assets': {'b': {'href': 'https://example.com/a.tif'}},
        **more,
    }


REGION = (10.5, 43.5, 11.5, 44.5)


def answering(page: dict[str, Any]) -> Callable[[Any], bool]:
    """What a STAC server does that answers every search with one page."""

    def answer(handler: Any) -> bool:
        if not handler.path.startswith('/search'):
            return False
        body = json.dumps(page).encode()
        handler.send_response(200)
        handler.send_header('Content-Type', 'application/geo+json')
        handler.send_header('Content-Length', str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return answer


@pytest.mark.parametrize('method', ['GET', 'POST', 'PUT', 'DELETE'])
def test_a_next_link_leads_to_no_private_host(tmp_path: Path, victim: Heard, method: str) -> None:
    """Neither with a method, a body nor headers of its choice; the API itself may be private, as the user named it."""
    link = {'rel': 'next', 'href': f'{victim.root}/latest/api/token', 'method': method}
    link |= {'headers': {'Metadata-Flavor': 'Google'}, 'body': {'cmd': 'shutdown'}} if method != 'GET' else {}
    page = {'type': 'FeatureCollection', 'features': [item('a')], 'links': [link]}

    with stac_server([item('a')]) as server:
        server.always = answering(page)
        source = SceneSource(api=server.root, collections=['c'], cache=tmp_path / 'cache', retries=0, timeout_s=5)
        with pytest.raises(GrafalignError, match='did not answer the search'):
            load_scenes(source, REGION)
    assert victim.requests == []


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A plain web server over a folder."""
    handler = type('Quiet', (http.server.SimpleHTTPRequestHandler,), {'log_message': lambda *_: None})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), lambda *a: handler(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('href', ['file:///etc/passwd', '/etc/passwd', 'http://127.0.0.2:9/a.tif', 'HOME/a.tif'])
def test_remote_parts_of_a_catalog_name_no_local_files_or_private_hosts(tmp_path: Path, href: str) -> None:
    """A catalog of one's own may lead to an item elsewhere; its assets are public then, or on its own origin."""
    remote = tmp_path / 'remote'
    remote.mkdir()
    with serving(remote) as root:
        scene = item('a', assets={'b': {'href': href.replace('HOME', root)}})
        (remote / 'item.json').write_text(json.dumps(scene))
        links = [{'rel': 'item', 'href': f'{root}/item.json'}, {'rel': 'child', 'href': './collection.json'}]
        catalog = {'type': 'Catalog', 'id': 'c', 'stac_version': '1.0.0', 'description': '', 'links': links}
        (tmp_path / 'catalog.json').write_text(json.dumps(catalog))
        (tmp_path / 'collection.json').write_text(json.dumps({**catalog, 'links': []}))
        source = SceneSource(catalog=tmp_path / 'catalog.json')
        if 'HOME' in href:
            assert [s.item_id for s in load_scenes(source, REGION)] == ['a']
        else:
            with pytest.raises(GrafalignError, match=r'is not allowed here|an address of a private network'):
                load_scenes(source, REGION)


@pytest.mark.parametrize(
    'bad',
    [
        {'assets': {'b': {'href': 'http://[/x.tif'}}},
        {'links': [{'rel': 'self', 'href': 'http://['}], 'assets': {'b': {'href': 'http://[/y.tif'}}},
        {'id': '\ud800x'},
        {'properties': {'datetime': '2021-06-01T00:00:00Z', 'a': '\ud800'}},
        {'properties': {'datetime': '2021-06-01T00:00:00Z', 'proj:geometry': 'x'}},
        {'properties': {'datetime': '2021-06-01T00:00:00Z', **{f'p{i}': i for i in range(2000)}}},
    ],
)
def test_one_bad_item_of_an_api_stops_nothing(tmp_path: Path, bad: dict[str, Any]) -> None:
    """It is rejected with its reason; the others are used."""
    with stac_server([item('a'), {**item('bad'), **bad}, item('z')]) as server:
        source = SceneSource(api=server.root, collections=['c'], cache=tmp_path / 'cache', timeout_s=10)
        found = load_scenes(source, REGION)
    assert [s.item_id for s in found] == ['a', 'z'] and len(found.rejected) == 1


def test_a_wrong_bbox_hides_no_item(tmp_path: Path) -> None:
    """The outline says where an item lies."""
    import shapely

    with stac_server([item('a'), item('b')]) as server:
        for known in server.items:
            known['bbox'] = [0, 0, 0, 0]
        source = SceneSource(api=server.root, collections=['c'], cache=tmp_path / 'cache', timeout_s=10)
        box = np.array([shapely.box(*REGION)], dtype=object)
        assert [s.item_id for s in load_scenes(source, REGION, tiles=box)] == ['a', 'b']


def test_what_an_api_matched_and_did_not_give_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page cap without a link to more: the API's own count tells."""
    features = [item(f'i{n}') for n in range(20)]
    page = {'type': 'FeatureCollection', 'numberMatched': 37, 'features': features, 'links': []}
    with stac_server([item('a')]) as server:
        server.always = answering(page)
        source = SceneSource(api=server.root, collections=['c'], cache=tmp_path / 'cache', timeout_s=10)
        found = load_scenes(source, REGION)
    assert len(found) == 20 and found.counts['matched and not given'] == 17
    assert 'matched 37 items and gave 20' in capsys.readouterr().err


# ---- bombs -----------------------------------------------------------------------------------------------------------


def test_json_without_end_is_one_sentence() -> None:
    """A hundred thousand brackets."""
    with pytest.raises(ValueError, match='nested too deeply'):
        parse_json('[' * 100_000)


def test_a_jpeg_of_exif_alone_is_refused_at_once() -> None:
    """760 segments of 64 kB, which take half a minute to join."""
    segment = b'\xff\xe1' + struct.pack('>H', 65_000) + b'Exif\0\0' + bytes(65_000 - 8)
    assert read_metadata(b'\xff\xd8' + segment * 300 + b'\xff\xd9').problem == 'more than 4 MB of metadata'


def test_a_tar_without_end_is_refused() -> None:
    """Every header says one more member of the same name."""
    import tarfile

    head = tarfile.TarInfo('a')
    head.size = 5_000_000
    block = head.tobuf()
    with pytest.raises(PhotoError, match='repeats its files'):
        read_index(lambda _at, size: block + bytes(size - len(block)))


# ---- text of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('text', ['=cmd|calc!A0', '+1+cmd', '-2+3x', '@SUM(A1)', '\t=1', '\r=1'])
def test_a_cell_is_no_formula(text: str) -> None:
    """OWASP's list of first characters; numbers stay numbers."""
    assert csv_cell(text) == f"'{text}"
    assert [csv_cell(v) for v in ('-0.5', '+1.2 to +3.4', 'a=b', 3)] == ['-0.5', '+1.2 to +3.4', 'a=b', 3]


def test_markdown_holds_no_html_and_ends_no_block() -> None:
    """Tags, links, cells and fences."""
    shown = markdown('<img src=x onerror=alert(1)>|[a](javascript:b)`c`')
    assert '<' not in shown and r'\|' in shown and r'\[a\]' in shown
    assert fenced('a\n```\n<script>', 'yaml').startswith('````yaml\n')


def test_control_characters_and_markup_are_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither a title of the terminal nor rich's markup or emoji codes come from a name."""
    from grafalign import console

    assert printable('a\x1b]0;pwned\x07b\u202ec') == r'a\x1b]0;pwned\x07b\u202ec'
    console.table('see [/1] here', ('[bold]', 'b'), [('x[bold].png', ':fire:'), ('[/b]', '\x1b[31m')])
    console.log('data:book:x [link]')
    console.histogram('[/]', {'grafalign[heic]': 2})
    shown = capfd.readouterr().err
    for text in ('see [/1] here', 'x[bold].png', ':fire:', '[/b]', 'data:book:x [link]', 'grafalign[heic]'):
        assert text in shown
    assert '\x1b[31m' not in shown


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_upright_as_photos_are(tmp_path: Path, orientation: int) -> None:
    """EXIF 2.32: what a camera turned, index, search and evaluation turn back."""
    from grafalign.photos.exif import open_photo

    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
    np.testing.assert_array_equal(
        np.moveaxis(read_picture(tmp_path / 'a.png', 'a.png'), 0, -1), np.asarray(open_photo(tmp_path / 'a.png'))
    )


@pytest.mark.parametrize(('mode', 'bands'), [('L', 1), ('LA', 1), ('RGB', 3), ('RGBA', 3)])
def test_sixteen_bit_pngs_have_the_bands_that_their_head_says(tmp_path: Path, mode: str, bands: int) -> None:
    """With transparency and without, told and read alike."""
    many = len(mode) if mode != 'L' else 1
    pixels = np.random.default_rng(0).integers(0, 65535, (many, 8, 8)).astype('uint16')
    with rasterio.open(tmp_path / 'a.png', 'w', driver='PNG', count=many, width=8, height=8, dtype='uint16') as file:
        file.write(pixels)
    metadata, found = picture_metadata(tmp_path / 'a.png', 'a.png'), read_picture(tmp_path / 'a.png', 'a.png')
    assert (metadata.bands, metadata.dtype, len(found), str(found.dtype)) == (bands, 'uint16', bands, 'uint16')
    np.testing.assert_array_equal(found, pixels[:bands])
