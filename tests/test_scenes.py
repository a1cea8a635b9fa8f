"""Scenes: where they are read from, what their numbers mean, which is chosen, and that pixels are copied."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from odc.geo.geobox import GeoBox

from grafalign.errors import GrafalignError
from grafalign.geo import TileGrid
from grafalign.scenes import (
    BandSource,
    Scene,
    SceneReader,
    SceneReadError,
    SceneSource,
    band_sources,
    load_scenes,
    rank_scenes,
)
from grafalign.scenes.items import scene_of

ALL = (-31.0, 44.0, -29.0, 46.0)


def lines(path: Path) -> list[dict[str, Any]]:
    """Items of an NDJSON file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def test_catalog_items_and_parquet_give_the_same_scenes(world: Path, tmp_path: Path) -> None:
    """A static catalog, an ItemCollection, NDJSON and stac-geoparquet of the same items are read alike."""
    import pyarrow.parquet
    from stac_geoparquet.arrow import parse_stac_items_to_arrow

    found = load_scenes(SceneSource(catalog=world / 'catalog' / 'catalog.json'), ALL)
    items = [s.item for s in found]
    (tmp_path / 'a.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    (tmp_path / 'b.ndjson').write_text('\n'.join(json.dumps(i) for i in items))
    same_shape = [i for i in items if i['collection'] == 'sandbox-ms']
    pyarrow.parquet.write_table(parse_stac_items_to_arrow(same_shape).read_all(), tmp_path / 'c.parquet')

    def facts(scenes: list[Scene]) -> list[tuple[object, ...]]:
        return [
            (s.item_id, s.when, s.cloud_percent, {k: a['href'] for k, a in s.item['assets'].items()}) for s in scenes
        ]

    assert len(found) == 12
    assert facts(load_scenes(SceneSource(items=tmp_path / 'a.json'), ALL)) == facts(found)
    assert facts(load_scenes(SceneSource(items=tmp_path / 'b.ndjson'), ALL)) == facts(found)
    ms = [s for s in found if s.collection == 'sandbox-ms']
    assert facts(load_scenes(SceneSource(items=tmp_path / 'c.parquet'), ALL)) == facts(ms)


def test_filters_by_collection_cloud_and_period(world: Path) -> None:
    """Each filter leaves what it says, and what no filter leaves is an error that names them."""
    catalog = world / 'catalog' / 'catalog.json'
    clear = load_scenes(SceneSource(catalog=catalog, collections=['sandbox-ms'], max_cloud_percent=10), ALL)
    assert {s.when.month for s in clear} == {2, 5, 7, 10}
    summer = load_scenes(SceneSource(catalog=catalog, period=('2021-07-01', '2021-07-31')), ALL)
    assert {s.item_id for s in summer} == {'ms_20210719_west', 'ms_20210719_east'}
    with pytest.raises(GrafalignError, match=r'none of its 12 items.*scenes.period'):
        load_scenes(SceneSource(catalog=catalog, period=('1999-01-01', '1999-12-31')), ALL)


@pytest.fixture
def api(world: Path) -> Iterator[tuple[str, list[str]]]:
    """A STAC API over HTTP that serves the world's items in pages of five; and the requests it got."""
    items = [s.item for s in load_scenes(SceneSource(catalog=world / 'catalog' / 'catalog.json'), ALL)]
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def answer(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            requests.append(f'GET {self.path}')
            conforms = ['https://api.stacspec.org/v1.0.0/core', 'https://api.stacspec.org/v1.0.0/item-search']
            links = [
                {'rel': 'self', 'href': root},
                {'rel': 'root', 'href': root},
                {'rel': 'search', 'href': f'{root}/search', 'method': 'POST', 'type': 'application/geo+json'},
            ]
            self.answer(
                {
                    'type': 'Catalog',
                    'id': 'api',
                    'stac_version': '1.0.0',
                    'description': 'test',
                    'conformsTo': conforms,
                    'links': links,
                }
            )

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            requests.append(f'POST {json.dumps(query, sort_keys=True)}')
            wanted = [i for i in items if i['collection'] in query['collections']]
            start = int(query.get('token', 0))
            page: dict[str, Any] = {'type': 'FeatureCollection', 'features': wanted[start : start + 5], 'links': []}
            if start + 5 < len(wanted):
                page['links'] = [
                    {
                        'rel': 'next',
                        'href': f'{root}/search',
                        'method': 'POST',
                        'merge': True,
                        'body': {'token': str(start + 5)},
                    }
                ]
            self.answer(page)

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    root = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, requests
    server.shutdown()
    server.server_close()


def test_an_api_is_searched_once_and_paged(api: tuple[str, list[str]]) -> None:
    """One search with the region and the collections, followed through its pages, whatever the number of photos."""
    root, requests = api
    found = load_scenes(SceneSource(api=root, collections=['sandbox-ms']), ALL)
    assert len(found) == 10
    posts = [json.loads(r.removeprefix('POST ')) for r in requests if r.startswith('POST')]
    assert len(posts) == 2 and posts[0]['bbox'] == list(ALL) and posts[0]['collections'] == ['sandbox-ms']


def test_an_api_that_is_not_there_is_one_sentence() -> None:
    """A connection that fails names the address."""
    with pytest.raises(GrafalignError, match=r'http://127.0.0.1:9.*did not answer'):
        load_scenes(SceneSource(api='http://127.0.0.1:9', collections=['x']), ALL)


def test_earth_search_offset_is_not_applied_twice(realdata: Path) -> None:
    """Earth Search says offset -0.1 and that it is applied already: only the scale is left."""
    items = lines(realdata / 'stac' / 'earth-search.aws.element84.com__sentinel-2-l2a.items.ndjson')
    applied = [i for i in items if i['properties'].get('earthsearch:boa_offset_applied')]
    assert applied
    for item in applied:
        source = band_sources(item, ['red'])[0]
        assert (source.scale, source.offset) == (0.0001, 0.0)


def test_planetary_computer_offset_follows_the_baseline(realdata: Path) -> None:
    """Without raster:bands the offset is -0.1 from baseline 04.00 on and 0 before."""
    items = lines(realdata / 'stac' / 'planetarycomputer.microsoft.com__sentinel-2-l2a.items.ndjson')
    kinds = set()
    for item in items:
        source = band_sources(item, ['B04'])[0]
        new = float(item['properties']['s2:processing_baseline']) >= 4
        assert (source.scale, source.offset) == (0.0001, -0.1 if new else 0.0)
        kinds.add(new)
    assert kinds == {True, False}


def test_naip_bands_are_found_in_its_one_asset(realdata: Path) -> None:
    """Red, green and blue are bands 1 to 3 of `image`, with nothing to scale."""
    item = lines(realdata / 'stac' / 'planetarycomputer.microsoft.com__naip.items.ndjson')[0]
    found = band_sources(item, ['red', 'green', 'blue'])
    assert [(b.index, b.scale, b.offset) for b in found] == [(1, 1, 0), (2, 1, 0), (3, 1, 0)]
    assert {b.href for b in found} == {item['assets']['image']['href']}
    assert band_sources(item, ['image:4'])[0].index == 4


def test_an_unknown_band_lists_those_there_are(realdata: Path) -> None:
    """A band that an item lacks is named, with the item's bands."""
    item = lines(realdata / 'stac' / 'planetarycomputer.microsoft.com__naip.items.ndjson')[0]
    with pytest.raises(GrafalignError, match=r"no band 'thermal'.*image"):
        band_sources(item, ['thermal'])


def scene(name: str, box: tuple[float, float, float, float], day: int, cloud: float | None = None) -> Scene:
    """A scene over a box on a day of January 2021."""
    item = {
        'id': name,
        'geometry': shapely.geometry.mapping(shapely.box(*box)),
        'assets': {},
        'properties': {'datetime': f'2021-01-{day:02d}T12:00:00Z', 'eo:cloud_cover': cloud},
    }
    found = scene_of(item)
    assert found is not None
    return found


def test_full_coverage_then_days_then_cloud() -> None:
    """A scene that covers the tile beats a nearer date; among those the nearest date wins; then the clearer sky."""
    tile = shapely.box(0, 0, 1, 1)
    whole = (-1, -1, 2, 2)
    scenes = [
        scene('half', (-1, -1, 0.5, 2), 10),
        scene('far', whole, 28),
        scene('near', whole, 12, 9.0),
        scene('near clear', whole, 12, 1.0),
        scene('elsewhere', (5, 5, 6, 6), 10),
    ]
    taken = datetime(2021, 1, 10, 12, tzinfo=timezone.utc).timestamp() / 86400
    ranked = rank_scenes(scenes, np.array([tile]), [np.array([taken, taken + 1, np.nan])], keep=9)[0]
    assert [scenes[i].item_id for i in ranked] == ['near clear', 'near', 'far', 'half']


def write(path: Path, pixels: np.ndarray, box: GeoBox, nodata: float | None = None) -> str:
    """A GeoTIFF of the pixels [bands, rows, columns]."""
    profile = {
        'driver': 'GTiff',
        'count': len(pixels),
        'dtype': pixels.dtype,
        'height': box.shape[0],
        'width': box.shape[1],
        'crs': str(box.crs),
        'transform': box.affine,
        'nodata': nodata,
    }
    with rasterio.open(path, 'w', **profile) as raster:
        raster.write(pixels)
    return str(path)


def test_a_tile_on_the_scenes_grid_is_a_copy(tmp_path: Path) -> None:
    """Aligned tiles are the raster's own pixels; what lies outside it is missing, and nothing is interpolated."""
    grid = TileGrid(32, 10)
    box = grid.geobox(32625, 500_000.0, 5_000_000.0).pad(20)
    pixels = np.random.default_rng(0).integers(1, 60_000, (1, *box.shape)).astype(np.uint16)
    href = write(tmp_path / 'a.tif', pixels, box, nodata=0)
    with SceneReader() as reader:
        source = [BandSource(href, 1, 1.0, 0.0, None)]
        inside, missing = reader.read(source, grid.geobox(32625, 500_000.0, 5_000_000.0))
        assert (inside[0] == pixels[0, 20:52, 20:52]).all() and not missing.any()
        edge, gone = reader.read(source, grid.geobox(32625, 500_000.0 - 300, 5_000_000.0))
        assert gone[:, :10].all() and not gone[:, 10:].any() and (edge[0, :, 10:] == pixels[0, 20:52, :22]).all()


def test_a_tile_off_the_grid_is_bilinear(tmp_path: Path) -> None:
    """A tile shifted by half a pixel is the mean of its neighbours."""
    grid = TileGrid(32, 10)
    box = grid.geobox(32625, 500_000.0, 5_000_000.0).pad(20)
    pixels = np.random.default_rng(1).integers(1, 255, (1, *box.shape)).astype(np.float32)
    href = write(tmp_path / 'a.tif', pixels, box)
    with SceneReader() as reader:
        found, missing = reader.read([BandSource(href, 1, 1.0, 0.0, None)], grid.geobox(32625, 500_005.0, 5_000_000.0))
    expected = (pixels[0, 20:52, 20:52] + pixels[0, 20:52, 21:53]) / 2
    assert not missing.any()
    np.testing.assert_allclose(found[0], expected, atol=0.2)


def test_bands_of_unlike_types_are_refused(tmp_path: Path) -> None:
    """Bands that are stored in two types are named rather than cast."""
    box = TileGrid(32, 10).geobox(32625, 500_000.0, 5_000_000.0)
    hrefs = [write(tmp_path / f'{t}.tif', np.ones((1, 32, 32), dtype=t), box) for t in ('uint8', 'uint16')]
    with SceneReader() as reader, pytest.raises(SceneReadError, match=r'uint16, uint8|uint8, uint16'):
        reader.read([BandSource(h, 1, 1.0, 0.0, None) for h in hrefs], box)
