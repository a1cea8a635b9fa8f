"""Tiles are cut from scenes: right pixels, and every block of a file fetched once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from grafalign.geo import TileGrid
from grafalign.scenes import BandSource, RangeReader, SceneCutter, SceneTiles, Uncut
from grafalign.scenes.blocks import merge_blocks
from grafalign.scenes.raster import Block
from tests.range_server import RangeServer

LEFT, TOP, EPSG = 500_000.0, 5_000_000.0, 32625


def write(path: Path, pixels: np.ndarray, *, corner: tuple[float, float] = (LEFT, TOP), gsd: float = 10, **more) -> str:
    """A GeoTIFF of the pixels [bands, rows, columns] on the zone's grid."""
    profile = {
        'driver': 'GTiff',
        'count': len(pixels),
        'dtype': pixels.dtype,
        'height': pixels.shape[1],
        'width': pixels.shape[2],
        'crs': f'EPSG:{EPSG}',
        'transform': rasterio.transform.from_origin(*corner, gsd, gsd),
        **more,
    }
    with rasterio.open(path, 'w', **profile) as file:
        file.write(pixels)
    return str(path)


def noise(bands: int, rows: int, cols: int, seed: int = 0, dtype: str = 'uint16') -> np.ndarray:
    """Pixels without a zero."""
    return np.random.default_rng(seed).integers(1, 200, (bands, rows, cols)).astype(dtype)


def bands_of(*places: tuple[str, int], nodata: float | None = None) -> list[BandSource]:
    """Bands with nothing to scale."""
    return [BandSource(href, index, 1.0, 0.0, () if nodata is None else (nodata,)) for href, index in places]


def cut(
    bands: list[BandSource],
    boxes: list[GeoBox],
    reader: RangeReader | None = None,
    resampling: Resampling = Resampling.bilinear,
    threads: int = 4,
) -> list[Any]:
    """Cut the tiles of one scene, in the order of the boxes."""
    with ThreadPoolExecutor(threads) as pool:
        cutter = SceneCutter(pool, reader or RangeReader(), 2 * threads, resampling)
        found = {c.number: c for _, c in cutter.cut([SceneTiles(bands, boxes)])}
    assert sorted(found) == list(range(len(boxes)))
    return [found[n] for n in range(len(boxes))]


def naive(pixels: np.ndarray, row: int, col: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The window of an array, pixel by pixel, with what lies beyond it missing."""
    out, gone = np.zeros((len(pixels), size, size), pixels.dtype), np.ones((size, size), dtype=bool)
    for r in range(size):
        for c in range(size):
            if 0 <= row + r < pixels.shape[1] and 0 <= col + c < pixels.shape[2]:
                out[:, r, c], gone[r, c] = pixels[:, row + r, col + c], False
    return out, gone


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """A server of the test's folder."""
    with RangeServer(tmp_path) as running:
        yield running


@given(
    block=st.sampled_from([16, 32, 64]),
    shape=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    bands=st.integers(1, 3),
    interleave=st.sampled_from(['pixel', 'band']),
    tiled=st.booleans(),
    places=st.lists(st.tuples(st.integers(-40, 150), st.integers(-40, 150)), min_size=1, max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_a_tile_on_the_grid_is_a_copy_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    block: int,
    shape: tuple[int, int],
    bands: int,
    interleave: str,
    tiled: bool,
    places: list[tuple[int, int]],
) -> None:
    """Any blocks, bands and places give the pixels of a naive window, and what lies beyond the raster is missing."""
    pixels = noise(bands, *shape)
    layout = {'tiled': True, 'blockxsize': block, 'blockysize': block} if tiled else {'tiled': False}
    path = tmp_path_factory.mktemp('grid') / 'a.tif'
    href = write(path, pixels, interleave=interleave, compress='deflate', **layout)
    grid = TileGrid(24, 10)
    boxes = [grid.geobox(EPSG, LEFT + 10 * col, TOP - 10 * row) for row, col in places]
    order = list(range(bands, 0, -1))
    for found, (row, col) in zip(cut(bands_of(*((href, b) for b in order)), boxes), places, strict=True):
        wanted, gone = naive(pixels[::-1], row, col, 24)
        assert found.pixels is not None and (found.pixels == wanted).all() and (found.missing == gone).all()


def test_every_block_is_fetched_once(server: RangeServer, tmp_path: Path) -> None:
    """Many overlapping tiles cost one header and, per row of needed blocks, the merged runs; no byte comes twice."""
    href = write(tmp_path / 'a.tif', noise(1, 1024, 1024), driver='COG', blocksize=128, compress='deflate')
    rng = np.random.default_rng(0)
    grid = TileGrid(50, 10)
    places = rng.integers(0, 970, (60, 2)).tolist()
    boxes = [grid.geobox(EPSG, LEFT + 10 * col, TOP - 10 * row) for row, col in places]
    with rasterio.open(href) as file:
        needed = {
            (y, x)
            for row, col in places
            for y in range(row // 128, (row + 49) // 128 + 1)
            for x in range(col // 128, (col + 49) // 128 + 1)
        }
        place = {
            k: tuple(int(file.get_tag_item(f'BLOCK_{w}_{k[1]}_{k[0]}', 'TIFF', bidx=1)) for w in ('OFFSET', 'SIZE'))
            for k in needed
        }
        stored = sorted(place.values())
    runs = 1 + sum(b[0] - (a[0] + a[1]) > 16 for a, b in itertools.pairwise(stored))
    server.reset()
    remote = cut(bands_of((server.url('a.tif'), 1)), boxes)
    counts = server.counts()
    local = cut(bands_of((href, 1)), boxes)
    assert all((a.pixels == b.pixels).all() for a, b in zip(remote, local, strict=True))
    # one header, and one question whether a mask lies beside a file that states no nodata value
    assert counts['requests'] == runs + 2 and counts['heads'] == 0
    ranges = sorted(counts['files']['a.tif']['ranges'])[1:]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))
    assert sum(b - a + 1 for a, b in ranges) <= 1.02 * sum(size for _, size in stored)


def test_a_tile_of_another_zone_is_exactly_bilinear(tmp_path: Path) -> None:
    """Where north is turned by some degrees the warp is the plain bilinear one, computed alone, and does not blur."""
    pixels = np.random.default_rng(1).integers(0, 60_000, (1, 300, 300)).astype(np.uint16)
    href = write(tmp_path / 'a.tif', pixels, corner=(740_000, TOP), tiled=True, blockxsize=64, blockysize=64)
    there = Transformer.from_crs(EPSG, EPSG + 1, always_xy=True)
    x, y = there.transform(741_500, TOP - 1500)
    grid = TileGrid(40, 10)
    box = grid.geobox(EPSG + 1, *(float(v) for v in grid.corner(np.array(x), np.array(y))))
    found = cut(bands_of((href, 1)), [box])[0]
    cols, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    east, north = box.affine @ (cols, rows)
    east, north = Transformer.from_crs(EPSG + 1, EPSG, always_xy=True).transform(east, north)
    exact = map_coordinates(pixels[0].astype(float), [(TOP - north) / 10 - 0.5, (east - 740_000) / 10 - 0.5], order=1)
    assert found.pixels is not None and not found.missing.any()
    # GDAL moves a tile's pixels by an approximation that is off by an eighth of a pixel at most
    assert np.abs(found.pixels[0] - exact).mean() < 300 and np.abs(found.pixels[0] - exact).max() < 60_000 / 8


def test_a_tile_off_the_grid_is_the_mean_of_its_neighbours(tmp_path: Path) -> None:
    """A tile shifted by half a pixel is the mean of two pixels, and no nodata pixel takes part in one."""
    pixels = noise(1, 80, 80, dtype='float32')
    pixels[0, 40, 40] = -9999
    href = write(tmp_path / 'a.tif', pixels, nodata=-9999)
    found = cut(bands_of((href, 1)), [TileGrid(32, 10).geobox(EPSG, LEFT + 205, TOP - 200)])[0]
    expected = (pixels[0, 20:52, 20:52] + pixels[0, 20:52, 21:53]) / 2
    beside = np.zeros((32, 32), dtype=bool)
    beside[20, 19:21] = True
    assert not found.missing[~beside].any() and not found.missing[beside].all()
    np.testing.assert_allclose(found.pixels[0][~beside], expected[~beside], atol=0.2)
    alone = np.array([pixels[0, 40, 39], pixels[0, 40, 41]])  # the valid one of the two
    kept = ~found.missing[beside]
    np.testing.assert_allclose(found.pixels[0][beside][kept], alone[kept])


def test_an_overview_is_used_where_the_gsd_allows(server: RangeServer, tmp_path: Path) -> None:
    """Tiles of 40 m from a file of 10 m are the pixels of its overview of 40 m; those of 35 m come from 20 m."""
    href = write(tmp_path / 'a.tif', noise(1, 2048, 2048), driver='COG', blocksize=128, compress='deflate')
    with rasterio.open(href, overview_level=1) as file:
        fourth = file.read(1)
    found = cut(bands_of((server.url('a.tif'), 1)), [TileGrid(64, 40).geobox(EPSG, LEFT + 400, TOP - 800)])[0]
    assert found.pixels is not None and (found.pixels[0] == fourth[20:84, 10:74]).all()
    at_40 = server.counts()['bytes']
    server.reset()
    cut(bands_of((server.url('a.tif'), 1)), [TileGrid(64, 35).geobox(EPSG, LEFT + 420, TOP - 840)])
    assert server.counts()['bytes'] > 2 * at_40 - 40_000


def test_a_dark_lake_is_not_missing_and_a_margin_is(tmp_path: Path) -> None:
    """In one file a pixel is missing where all wanted bands are nodata, not where one of them is 0."""
    pixels = noise(3, 64, 64, dtype='uint8')
    pixels[0, 10:20, 10:20] = 0  # dark in one band
    pixels[:, 40:, :] = 0  # beside the picture
    href = write(tmp_path / 'a.tif', pixels, nodata=0, interleave='pixel')
    found = cut(bands_of((href, 1), (href, 2), (href, 3)), [TileGrid(64, 10).geobox(EPSG, LEFT, TOP)])[0]
    assert found.missing[40:].all() and not found.missing[:40].any()
    assert (found.pixels == pixels).all()


def test_what_is_missing_in_one_file_is_missing(tmp_path: Path) -> None:
    """Over several files a pixel is missing where any of them lacks it."""
    first, second = noise(1, 64, 64), noise(1, 64, 64, 1)
    first[0, :5], second[0, -5:] = 0, 0
    hrefs = [write(tmp_path / f'{n}.tif', p, nodata=0) for n, p in enumerate((first, second))]
    found = cut(bands_of(*((h, 1) for h in hrefs)), [TileGrid(64, 10).geobox(EPSG, LEFT, TOP)])[0]
    assert found.missing[:5].all() and found.missing[-5:].all() and not found.missing[5:-5].any()
    assert (found.pixels[:, :5] == 0).all()


@pytest.mark.parametrize('kind', ['mask', 'alpha'])
def test_mask_bands_say_what_is_missing(kind: str, server: RangeServer, tmp_path: Path) -> None:
    """An internal mask or an alpha band counts, near and far."""
    pixels = noise(4 if kind == 'alpha' else 3, 256, 256, dtype='uint8')
    valid = np.ones((256, 256), dtype=bool)
    valid[100:150, 30:90] = False
    path = tmp_path / 'a.tif'
    if kind == 'alpha':
        pixels[3] = np.where(valid, 255, 0)
        pixels[3, :20], pixels[3, 20:40] = 1, 127  # whatever is not wholly transparent is there
    options = {'photometric': 'RGB', 'alpha': 'YES'} if kind == 'alpha' else {}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write(path, pixels, tiled=True, blockxsize=64, blockysize=64, compress='deflate', **options)
        if kind == 'mask':
            with rasterio.open(path, 'r+') as file:
                file.write_mask(valid)
    for href in (str(path), server.url('a.tif')):
        found = cut(bands_of((href, 1), (href, 2)), [TileGrid(200, 10).geobox(EPSG, LEFT, TOP)])[0]
        assert (found.missing == ~valid[:200, :200]).all()


def test_a_run_of_blocks_has_a_limit() -> None:
    """Blocks side by side are fetched together, up to 32 MB; a gap over 1 kB, or a block over the limit, parts."""
    size = 3 << 20
    blocks = [Block(1, 0, col, col * size, size) for col in range(25)]
    runs = merge_blocks(blocks)
    assert [len(run) for run in runs] == [10, 10, 5] and [b for run in runs for b in run] == blocks
    assert all(run[-1].start + run[-1].nbytes - run[0].start <= 32 << 20 for run in runs)
    apart = [Block(1, 0, 0, 0, 100), Block(1, 0, 1, 1124, 100), Block(1, 0, 2, 2249, 100)]
    assert merge_blocks(apart) == [apart[:2], apart[2:]]
    assert len(merge_blocks([Block(1, 0, 0, 0, 40 << 20), Block(1, 0, 1, 40 << 20, 10)])) == 2


def test_nearest_keeps_classes(tmp_path: Path) -> None:
    """Resampling by the nearest pixel makes no new value."""
    pixels = np.random.default_rng(0).choice([4, 8, 11], (1, 100, 100)).astype(np.uint8)
    href = write(tmp_path / 'a.tif', pixels, gsd=20)
    box = TileGrid(64, 10).geobox(EPSG, LEFT + 100, TOP - 100)
    found = cut(bands_of((href, 1)), [box], resampling=Resampling.nearest)[0]
    assert (found.pixels[0] == np.repeat(np.repeat(pixels[0, 5:37, 5:37], 2, 0), 2, 1)).all()


def test_servers_that_fail_for_a_while_are_asked_again(server: RangeServer, tmp_path: Path) -> None:
    """503 and bodies that end early are retried and counted, and the pixels are right."""
    pixels = noise(1, 512, 512)
    write(tmp_path / 'a.tif', pixels, driver='COG', blocksize=128, compress='deflate')
    server.set(faults={'fail_every': 3, 'cut_every': 5})
    reader = RangeReader()
    boxes = [TileGrid(64, 10).geobox(EPSG, LEFT + 10 * i, TOP - 10 * i) for i in range(0, 400, 40)]
    found = cut(bands_of((server.url('a.tif'), 1)), boxes, reader)
    for i, tile in zip(range(0, 400, 40), found, strict=True):
        assert (tile.pixels == pixels[:, i : i + 64, i : i + 64]).all()
    assert reader.traffic.retries > 0 and server.counts()['faults'] == reader.traffic.retries


def test_a_file_that_stays_away_fails_its_tiles_with_a_reason(server: RangeServer, tmp_path: Path) -> None:
    """A missing file, a page of text and a file that is cut off each end in a problem that names the file."""
    href = write(tmp_path / 'a.tif', noise(1, 512, 512), driver='COG', blocksize=128, compress='deflate')
    (tmp_path / 'text.tif').write_text('<html>sign in</html>' * 100)
    (tmp_path / 'short.tif').write_bytes(Path(href).read_bytes()[:60_000])
    boxes = [TileGrid(64, 10).geobox(EPSG, LEFT, TOP), TileGrid(64, 10).geobox(EPSG, LEFT + 4000, TOP - 4000)]
    reader = RangeReader(retries=1)
    problems = {n: [t.reason for t in cut(bands_of((server.url(n), 1)), boxes, reader)] for n in ('no.tif', 'text.tif')}
    assert all('no.tif' in p and '404' in p for p in problems['no.tif'])
    assert all('text.tif' in p for p in problems['text.tif'])
    short = cut(bands_of((server.url('short.tif'), 1)), boxes, reader)
    assert any(isinstance(t, Uncut) and 'short.tif' in t.reason for t in short)


def test_a_damaged_block_amid_a_run_costs_only_its_tiles(server: RangeServer, tmp_path: Path) -> None:
    """Of one row of blocks that comes with one request, those before and behind a damaged one are used all the same."""
    pixels = noise(1, 128, 640)
    href = write(tmp_path / 'a.tif', pixels, driver='COG', blocksize=128, compress='deflate')
    with rasterio.open(href) as file:
        start = int(file.get_tag_item('BLOCK_OFFSET_2_0', 'TIFF', bidx=1))
    damaged = bytearray(Path(href).read_bytes())
    damaged[start : start + 200] = b'\0' * 200
    Path(href).write_bytes(damaged)
    boxes = [TileGrid(64, 10).geobox(EPSG, LEFT + 10 * col, TOP) for col in (0, 100, 160, 250, 320, 420, 560)]
    found = cut(bands_of((server.url('a.tif'), 1)), boxes)
    assert [isinstance(f, Uncut) for f in found] == [False, False, False, True, True, False, False]
    assert all('a.tif' in f.reason for f in found if isinstance(f, Uncut))
    for tile, col in zip(found, (0, 100, 160, 250, 320, 420, 560), strict=True):
        assert isinstance(tile, Uncut) or (tile.pixels == pixels[:, :64, col : col + 64]).all()


def test_a_server_without_ranges_is_named(server: RangeServer, tmp_path: Path) -> None:
    """Whole files are not downloaded for a few tiles."""
    write(tmp_path / 'a.tif', noise(1, 512, 512), driver='COG', blocksize=128)
    server.set(faults={'ignore_ranges': True})
    found = cut(bands_of((server.url('a.tif'), 1)), [TileGrid(64, 10).geobox(EPSG, LEFT, TOP)], RangeReader(retries=0))
    assert 'whole files' in found[0].reason


def test_scenes_are_cut_together_and_told_apart(server: RangeServer, tmp_path: Path) -> None:
    """Ten scenes in one call, one of them unreadable: each tile has its own scene's pixels."""
    scenes, boxes = [], [TileGrid(32, 10).geobox(EPSG, LEFT + 320 * i, TOP) for i in range(4)]
    arrays = [noise(1, 128, 128, seed) for seed in range(10)]
    for n, pixels in enumerate(arrays):
        write(tmp_path / f'{n}.tif', pixels, driver='COG', blocksize=128)
        scenes.append(SceneTiles(bands_of((server.url(f'{n}.tif' if n != 4 else 'none.tif'), 1)), boxes))
    with ThreadPoolExecutor(3) as pool:
        found = {(s, c.number): c for s, c in SceneCutter(pool, RangeReader(retries=0), 4).cut(scenes)}
    assert len(found) == 40
    for (s, number), tile in found.items():
        if s == 4:
            assert 'none.tif' in tile.reason
        else:
            assert (tile.pixels == arrays[s][:, :32, 32 * number : 32 * number + 32]).all()


def test_a_remote_file_cannot_make_us_read_local_ones(server: RangeServer, tmp_path: Path) -> None:
    """A VRT that names a local file is no raster to us, and private addresses are refused where they must be."""
    secret = write(tmp_path / 'secret.tif', noise(1, 64, 64))
    with rasterio.open(secret) as file:
        vrt = f"""<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:{EPSG}</SRS>
        <GeoTransform>{', '.join(map(str, file.transform.to_gdal()))}</GeoTransform><VRTRasterBand dataType="UInt16"
        band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""
    (tmp_path / 'a.tif').write_text(vrt)
    boxes = [TileGrid(32, 10).geobox(EPSG, LEFT, TOP)]
    assert 'is XML' in cut(bands_of((server.url('a.tif'), 1)), boxes)[0].reason
    inside = cut(bands_of((server.url('secret.tif'), 1)), boxes, RangeReader(private=False))
    assert 'private address' in inside[0].reason


def test_bands_of_unlike_types_are_refused(tmp_path: Path) -> None:
    """Bands that are stored in two types are named rather than cast."""
    hrefs = [write(tmp_path / f'{t}.tif', np.ones((1, 32, 32), dtype=t)) for t in ('uint8', 'uint16')]
    found = cut(bands_of(*((h, 1) for h in hrefs)), [TileGrid(32, 10).geobox(EPSG, LEFT, TOP)])[0]
    assert 'stored as uint16, uint8' in found.reason


def test_a_band_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Asking for band 5 of a file of two names both numbers."""
    href = write(tmp_path / 'a.tif', noise(2, 32, 32))
    found = cut(bands_of((href, 5)), [TileGrid(32, 10).geobox(EPSG, LEFT, TOP)])[0]
    assert 'has 2 bands, no band 5' in found.reason


def test_blocks_that_are_not_stored_are_nodata(server: RangeServer, tmp_path: Path) -> None:
    """A sparse file has no bytes for empty blocks: they are missing, and cost no request."""
    path = tmp_path / 'a.tif'
    profile = {'tiled': True, 'blockxsize': 64, 'blockysize': 64, 'sparse_ok': True, 'nodata': 0, 'compress': 'deflate'}
    pixels = noise(1, 64, 64)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=1,
        dtype='uint16',
        height=256,
        width=256,
        crs=f'EPSG:{EPSG}',
        transform=rasterio.transform.from_origin(LEFT, TOP, 10, 10),
        **profile,
    ) as file:
        file.write(pixels, window=Window(64, 64, 64, 64))
    found = cut(bands_of((server.url('a.tif'), 1)), [TileGrid(192, 10).geobox(EPSG, LEFT, TOP)])[0]
    assert found.pixels is not None and (found.pixels[0, 64:128, 64:128] == pixels[0]).all()
    assert found.missing.sum() == 192 * 192 - 64 * 64
    assert server.counts()['requests'] == 2
