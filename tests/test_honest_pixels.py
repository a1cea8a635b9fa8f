"""What is missing, what numbers mean, and where they lie: values that follow from the formats' own words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from grafalign.errors import GrafalignError
from grafalign.geo import TileGrid
from grafalign.scenes import BandSource, Cut, RangeReader, Uncut, band_sources, cloud_mask
from grafalign.scenes.radiometry import BandOverride, processing_baseline
from tests.range_server import RangeServer
from tests.test_blocks import EPSG, LEFT, TOP, bands_of, cut, write

BOX = TileGrid(32, 10).geobox(EPSG, LEFT + 320, TOP - 320)
"""A tile on the grid of the files that `write` makes."""
OFF_GRID = TileGrid(32, 10).geobox(EPSG, LEFT + 325, TOP - 325)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """Serves the files of the test's folder."""
    with RangeServer(tmp_path) as running:
        yield running


def half(value: float, nothing: float, dtype: str, bands: int = 1) -> np.ndarray:
    """Pixels [bands, 96, 96]: the left half of `BOX` holds nothing, the rest a value."""
    pixels = np.full((bands, 96, 96), value, dtype=dtype)
    pixels[:, :, :48] = nothing
    return pixels


def item(assets: dict[str, Any], collection: str = 'c', name: str = 'i', **properties: Any) -> dict[str, Any]:
    """An item with assets."""
    return {
        'id': name,
        'collection': collection,
        'assets': assets,
        'properties': {'datetime': '2021-06-01', **properties},
    }


def one(href: str, **asset: Any) -> dict[str, Any]:
    """An item with one band `b`."""
    return item({'b': {'href': href, 'type': 'image/tiff', **asset}})


def half_missing(found: Cut) -> bool:
    """Whether just the left half of a tile is missing, and stored as 0."""
    expected = np.zeros((32, 32), dtype=bool)
    expected[:, :16] = True
    return bool((found.missing == expected).all() and not found.pixels[:, expected].any())


# ---- missing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('nothing', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('tag', [None, 0.0, -9999.0, math.nan])
def test_numbers_that_are_not_finite_are_missing_whatever_is_tagged(tmp_path: Path, nothing: float, tag: float) -> None:
    """NaN and infinity are no measurements, also where the file states another nodata value, or none."""
    href = write(tmp_path / 'a.tif', half(0.25, nothing, 'float32'), nodata=tag)
    assert half_missing(cut(bands_of((href, 1)), [BOX])[0])
    assert half_missing(cut(bands_of((href, 1), nodata=0.0), [BOX])[0])


def test_nan_in_one_band_of_two_is_missing_in_both(tmp_path: Path) -> None:
    """A pixel is missing where any band is NaN."""
    pixels = half(0.25, 0.5, 'float32', bands=2)
    pixels[1, :, :48] = np.nan
    href = write(tmp_path / 'a.tif', pixels)
    assert half_missing(cut(bands_of((href, 1), (href, 2)), [BOX])[0])


@pytest.mark.parametrize(
    ('stated', 'value', 'dtype'),
    [('nan', math.nan, 'float32'), ('-9999', -9999, 'float32'), ('-inf', -math.inf, 'float64'), ('0', 0, 'uint8')],
)
def test_nodata_may_be_text(tmp_path: Path, stated: str, value: float, dtype: str) -> None:
    """The STAC raster extension: nodata is a number, or one of `nan`, `inf`, `-inf`."""
    href = write(tmp_path / 'a.tif', half(7, value, dtype))
    assert half_missing(cut(band_sources(one(href, **{'raster:bands': [{'nodata': stated}]}), ['b'], 10), [BOX])[0])


def test_nodata_of_item_and_file_both_hold(tmp_path: Path) -> None:
    """An item's 0 does not switch off the file's own 5, and the other way round."""
    pixels = half(7, 0, 'uint16')
    pixels[:, :, :40] = 5
    href = write(tmp_path / 'a.tif', pixels, nodata=5)
    assert half_missing(cut(bands_of((href, 1), nodata=0.0), [BOX])[0])


def test_nodata_is_compared_in_the_type_of_the_pixels(tmp_path: Path) -> None:
    """The smallest float32 is a double of many digits in an item; 1.5 is no value of an integer file."""
    lowest = float(np.finfo('float32').min)
    href = write(tmp_path / 'a.tif', half(7, lowest, 'float32'))
    assert half_missing(cut(bands_of((href, 1), nodata=-3.4028234663852886e38), [BOX])[0])
    href = write(tmp_path / 'b.tif', half(7, 1, 'uint8'))
    found = cut(bands_of((href, 1), nodata=1.5), [BOX])[0]
    assert found.missing is not None and not found.missing.any()


@pytest.mark.parametrize('box', [BOX, OFF_GRID])
def test_signed_bytes_are_like_any_other_type(tmp_path: Path, box: Any) -> None:
    """int8 (AlphaEarth's embeddings) off the grid gives what int16 gives."""
    pixels = np.random.default_rng(0).integers(-120, 120, (1, 96, 96))
    small = write(tmp_path / 'a.tif', pixels.astype('int8'), nodata=-128)
    large = write(tmp_path / 'b.tif', pixels.astype('int16'), nodata=-128)
    ours, theirs = cut(bands_of((small, 1)), [box])[0], cut(bands_of((large, 1)), [box])[0]
    assert ours.pixels is not None and ours.missing is not None and not ours.missing.any()
    assert ours.pixels.dtype == np.int8
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def masked(path: Path, inside: bool) -> None:
    """A file of 7 whose mask leaves out the left half of `BOX`."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
        write(path, np.full((1, 96, 96), 7, dtype='uint8'))
        with rasterio.open(path, 'r+') as file:
            file.write_mask((half(1, 0, 'uint8')[0] * 255).astype('uint8'))


@pytest.mark.parametrize('inside', [True, False])
def test_a_mask_is_the_same_on_disk_and_on_a_server(tmp_path: Path, server: RangeServer, inside: bool) -> None:
    """Masks inside a file and beside it (FILE.tif.msk) hold wherever it lies."""
    masked(tmp_path / 'a.tif', inside)
    assert (tmp_path / 'a.tif.msk').exists() != inside
    for href in (str(tmp_path / 'a.tif'), server.url('a.tif')):
        assert half_missing(cut(bands_of((href, 1)), [BOX])[0])


def test_a_mask_beside_a_file_is_not_asked_for_where_nodata_is_stated(tmp_path: Path, server: RangeServer) -> None:
    """Then both places leave it unread: one answer, and no request for most scenes."""
    masked(tmp_path / 'a.tif', inside=False)
    for href in (str(tmp_path / 'a.tif'), server.url('a.tif')):
        found = cut(bands_of((href, 1), nodata=0.0), [BOX])[0]
        assert found.missing is not None and not found.missing.any()
    assert not any(name.endswith('.msk') for name in server.counts()['files'])


@pytest.mark.parametrize('key', ['eo:bands', 'bands'])
def test_near_infrared_that_is_tagged_alpha_is_no_mask(tmp_path: Path, key: str) -> None:
    """NAIP's fourth band often says that it is transparency; the item says what it is, and water stays."""
    pixels = np.full((4, 96, 96), 100, dtype='uint8')
    pixels[3, :, :48] = 0
    href = write(tmp_path / 'a.tif', pixels, photometric='RGB', alpha='yes')
    with rasterio.open(href) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    names = [{'name': n, 'common_name': n} for n in ('red', 'green', 'blue', 'nir')]
    scene = item({'image': {'href': href, 'type': 'image/tiff', key: names}})
    found = cut(band_sources(scene, ['red', 'green'], 10), [BOX])[0]
    assert found.missing is not None and not found.missing.any()
    names[3] = {'name': 'alpha', 'common_name': 'alpha'}
    assert half_missing(cut(band_sources(scene, ['red', 'green'], 10), [BOX])[0])
    found = cut(band_sources(scene, ['red', 'image:4'], 10), [BOX])[0]  # the recipe wants it as data
    assert found.missing is not None and not found.missing.any()


# ---- what numbers mean -----------------------------------------------------------------------------------------------


def test_scale_and_offset_inside_a_file_apply_where_the_item_is_silent(tmp_path: Path) -> None:
    """GDAL's own SCALE and OFFSET, as HLS has them; what the item says comes first."""
    href = write(tmp_path / 'a.tif', half(1500, 1500, 'int16'))
    with rasterio.open(href, 'r+') as file:
        file.scales, file.offsets = (2.75e-05,), (-0.2,)
    found = cut(band_sources(one(href, **{'raster:bands': [{'nodata': 0}]}), ['b'], 10), [BOX])[0]
    assert (found.scale, found.offset) == ((2.75e-05,), (-0.2,))
    found = cut(band_sources(one(href, **{'raster:bands': [{'scale': 0.0001}]}), ['b'], 10), [BOX])[0]
    assert (found.scale, found.offset) == ((0.0001,), (0.0,))


def test_what_an_item_states_once_for_all_assets_holds() -> None:
    """STAC 1.1 common metadata: `nodata`, and the raster extension's scale, may stand in `properties`."""
    scene = item({'b': {'href': 'a.tif'}}, nodata='nan', **{'raster:scale': 0.1, 'raster:offset': 2})
    source = band_sources(scene, ['b'], 10)[0]
    assert (source.scale, source.offset) == (0.1, 2.0) and math.isnan(source.nodata[0])


@pytest.mark.parametrize('scale', [math.inf, math.nan, 'x', 0, '1e999'])
def test_a_scale_that_is_no_number_is_refused(scale: Any) -> None:
    """An item that misstates its bands is named, not believed."""
    with pytest.raises(GrafalignError, match='Item i misstates its bands'):
        band_sources(one('a.tif', **{'raster:bands': [{'scale': scale}]}), ['b'], 10)


PRODUCT = 'S2A_MSIL2A_20230501T100031_N0509_R122_T32TPQ_20230501T160000'


@pytest.mark.parametrize(
    ('name', 'properties', 'baseline', 'offset'),
    [
        ('i', {'s2:processing_baseline': '05.09'}, '05.09', -0.1),
        ('i', {'s2:processing_baseline': '03.01'}, '03.01', 0.0),
        ('i', {'processing:version': '05.09'}, '05.09', -0.1),
        ('i', {'processing:version': 'N0509'}, '05.09', -0.1),
        ('i', {'processing:version': '02.14'}, '02.14', 0.0),
        (PRODUCT, {}, '05.09', -0.1),
        ('i', {'s2:product_uri': f'{PRODUCT}.SAFE'}, '05.09', -0.1),
        ('i', {'datetime': '2021-01-01T00:00:00Z'}, None, 0.0),
    ],
)
@pytest.mark.parametrize('collection', ['sentinel-2-l2a', 'SENTINEL-2', 'sentinel_2_l2a'])
def test_one_rule_for_the_processing_baseline(
    name: str, properties: dict[str, Any], baseline: str | None, offset: float, collection: str
) -> None:
    """ESA: from baseline 04.00 (2022-01-25) on, reflectance is (DN - 1000) / 10000, wherever the baseline stands."""
    properties = {'datetime': '2023-05-01T10:00:31Z', **properties}
    scene = item({'B04': {'href': 'a.jp2', 'eo:bands': [{'name': 'B04'}]}}, collection, name, **properties)
    source = band_sources(scene, ['B04'], 10)[0]
    assert (processing_baseline(scene), source.scale, source.offset) == (baseline, 0.0001, offset)


def test_a_sentinel_2_item_that_states_nothing_where_it_must_is_refused() -> None:
    """After the change nobody can guess the offset, so the item is named, with the remedy."""
    scene = item({'B04': {'href': 'a.jp2'}}, 'sentinel-2-l2a', datetime='2023-05-01T10:00:31Z')
    with pytest.raises(GrafalignError, match=r'states neither .* sensor\.overrides'):
        band_sources(scene, ['B04'], 10)


def test_overrides_hold_whatever_item_and_file_say(tmp_path: Path) -> None:
    """`sensor.overrides` mends nodata, scale, offset and mask of a band whose item is wrong."""
    href = write(tmp_path / 'a.tif', half(7, 3, 'uint8'))
    override = BandOverride(nodata=3, scale=2, offset=-1)
    scene = one(href, **{'raster:bands': [{'scale': 0.5}]})
    found = cut(band_sources(scene, ['b'], 10, {'b': override}), [BOX])[0]
    assert half_missing(found) and (found.scale, found.offset) == ((2.0,), (-1.0,))
    masked(tmp_path / 'm.tif', inside=True)
    found = cut(band_sources(one(str(tmp_path / 'm.tif')), ['b'], 10, {'b': BandOverride(mask=False)}), [BOX])[0]
    assert found.missing is not None and not found.missing.any()


# ---- which asset -----------------------------------------------------------------------------------------------------


def red(href: str, metres: float | None = None, bands: int = 1, **more: Any) -> dict[str, Any]:
    """An asset with a band called B04, common name red."""
    names = [{'name': f'B0{4 - i}', 'common_name': ('red', 'green', 'blue')[i]} for i in range(bands)]
    size = {} if metres is None else {'gsd': metres}
    return {'href': href, 'type': 'image/jp2', 'eo:bands': names, **size, **more}


@pytest.mark.parametrize('name', ['red', 'B04'])
@pytest.mark.parametrize('order', [1, -1])
def test_of_several_assets_the_one_of_the_tiles_resolution_is_read(name: str, order: int) -> None:
    """Whatever stands first in the JSON: one band before a picture of three, nearest to the tile and not coarser."""
    assets = {
        'visual': red('picture.tif', 10, bands=3),
        'B04_10m': red('ten.jp2', 10),
        'B04_20m': red('twenty.jp2', 20),
        'B04_60m': red('sixty.jp2', None, **{'proj:transform': [60, 0, 300000, 0, -60, 5000040]}),
    }
    scene = item(dict(list(assets.items())[::order]))
    for tile, expected in ((10, 'ten.jp2'), (20, 'twenty.jp2'), (30, 'twenty.jp2'), (60, 'sixty.jp2')):
        assert band_sources(scene, [name], tile)[0].href == expected
    with pytest.raises(GrafalignError, match=r'several assets with a band .*B04_10m \(10 m\)'):
        band_sources(scene, [name], 5)


def test_bands_of_one_name_that_nothing_tells_apart_are_listed() -> None:
    """Sentinel-2 has three bands of the common name rededge: none is guessed."""
    scene = item(
        {n: red(f'{n}.tif', 20, **{'eo:bands': [{'name': n, 'common_name': 'rededge'}]}) for n in ('B05', 'B06')}
    )
    with pytest.raises(GrafalignError, match=r'B05 .*B06'):
        band_sources(scene, ['rededge'], 20)


@pytest.mark.parametrize(
    ('key', 'asset'),
    [
        ('SCL', {}),
        ('scl', {}),
        ('SCL_20m', {}),
        ('classes', {'eo:bands': [{'name': 'SCL'}]}),
        ('c', {'bands': [{'name': 'scl'}]}),
    ],
)
def test_the_scene_classification_is_found_by_any_of_its_names(key: str, asset: dict[str, Any]) -> None:
    """Found as bands are found: by key, also of the Copernicus Data Space, and by band name."""
    source = cloud_mask(item({'B04': red('r.tif'), key: {'href': 'scl.tif', **asset}}))
    assert source is not None and source.href == 'scl.tif'
    assert cloud_mask(item({'B04': red('r.tif')})) is None


# ---- grids -----------------------------------------------------------------------------------------------------------


def test_tiles_on_the_grid_of_landsat_are_copied(tmp_path: Path) -> None:
    """USGS: corners are odd multiples of 15 m. A checkerboard stays one; half a pixel beside it would be grey."""
    board = (np.indices((96, 96)).sum(0) % 2 * 200 + 20).astype('uint8')[None]
    href = write(tmp_path / 'a.tif', board, corner=(353_685, 5_374_215), gsd=30)
    for origin, spread in (((15.0, 15.0), 100), ((0.0, 0.0), 0)):
        grid = TileGrid(16, 30, origin)
        left, top = grid.corner(np.array([355_000.0]), np.array([5_373_000.0]))
        found = cut(bands_of((href, 1)), [grid.geobox(EPSG, float(left[0]), float(top[0]))])[0]
        assert float(found.pixels.std()) == pytest.approx(spread, abs=1)


def test_the_origin_is_part_of_a_tiles_name() -> None:
    """Tiles of two grids at one place have two names, also where the origin is no whole number of metres."""
    names = set()
    for origin in ((0.0, 0.0), (15.0, 15.0), (0.5, 0.25)):
        grid = TileGrid(64, 30, origin)
        left, top = grid.corner(np.array([400_000.0]), np.array([5_000_000.0]))
        assert [(left[0] - origin[0]) % 30, (top[0] - origin[1]) % 30] == [0, 0]
        names.add(grid.tile_ids(np.array([EPSG]), left, top)[0])
    assert len(names) == 3


WORLD = 2 * math.pi * 6_378_137


@pytest.mark.parametrize(
    ('crs', 'west', 'step'),
    [
        ('EPSG:4326', 179.987, 1e-4),
        ('EPSG:4326', -180.013, 1e-4),
        ('EPSG:4326', 539.987, 1e-4),
        ('EPSG:3857', WORLD / 2 - 1500, 12.0),
        ('EPSG:3857', -WORLD / 2 - 1500, 12.0),
    ],
)
@pytest.mark.parametrize('lon', [179.9955, -179.9955, 179.9999])
def test_longitudes_are_the_same_modulo_360(tmp_path: Path, crs: str, west: float, step: float, lon: float) -> None:
    """Rasters over the antimeridian, or counted from 0 to 360 or beyond, hold tiles on both sides and across it.

    The raster's numbers are its columns, so every pixel of a tile must be the column that its longitude falls on.
    """
    pixels = np.tile(np.arange(260, dtype='float32'), (1, 260, 1))
    transform = Affine(step, 0, west, 0, -step, 130 * step)
    href = write(tmp_path / 'a.tif', pixels, crs=crs, transform=transform)
    zone = 32660 if lon > 0 else 32601
    grid = TileGrid(32, 20)
    x, y = Transformer.from_crs(4326, zone, always_xy=True).transform(lon, 0.0)
    left, top = grid.corner(np.array([x]), np.array([y]))
    box = grid.geobox(zone, float(left[0]), float(top[0]))
    found = cut(bands_of((href, 1)), [box])[0]
    assert not found.missing.any()
    cols, rows = np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5)
    true_lon, _ = Transformer.from_crs(zone, 4326, always_xy=True).transform(*(box.affine @ (cols, rows)))
    turn = 360 if crs == 'EPSG:4326' else WORLD
    place = true_lon if crs == 'EPSG:4326' else np.deg2rad(true_lon) * 6_378_137
    expected = np.mod(place - west, turn) / step - 0.5
    np.testing.assert_allclose(found.pixels[0], expected, atol=0.1)


@pytest.mark.parametrize('crs', ['EPSG:4326', 'EPSG:3857'])
def test_a_tile_over_the_seam_of_a_global_raster_takes_both_ends(tmp_path: Path, crs: str) -> None:
    """A raster of the whole world is cut at 180 degrees; a tile of 320 km there is whole."""
    half_turn = 180.0 if crs == 'EPSG:4326' else WORLD / 2
    step = 2 * half_turn / 720
    pixels = np.full((1, 360, 720), 9, 'uint8')
    href = write(tmp_path / 'a.tif', pixels, crs=crs, transform=Affine(step, 0, -half_turn, 0, -step, 180 * step))
    grid = TileGrid(32, 10_000)
    x, y = Transformer.from_crs(4326, 32760, always_xy=True).transform(179.9, -17.0)
    left, top = grid.corner(np.array([x]), np.array([y]))
    found = cut(bands_of((href, 1)), [grid.geobox(32760, float(left[0]), float(top[0]))])[0]
    assert found.missing.mean() < 0.02


@pytest.mark.parametrize('value', [{'scale': 0}, {'scale': math.nan}, {'offset': math.inf}])
def test_an_override_that_makes_no_sense_is_refused(value: dict[str, float]) -> None:
    """By the recipe, before anything is read."""
    with pytest.raises(ValueError, match='must'):
        BandOverride(**value)


def test_an_override_is_the_remedy_that_the_refusals_name() -> None:
    """Of a Sentinel-2 item that states nothing, and of an item whose scale is 0."""
    override = {'B04': BandOverride(scale=0.0001, offset=-0.1)}
    scene = item({'B04': {'href': 'a.jp2'}}, 'sentinel-2-l2a', datetime='2023-05-01T10:00:31Z')
    assert band_sources(scene, ['B04'], 10, override)[0].offset == -0.1
    scene = item({'B04': {'href': 'a.tif', 'raster:bands': [{'scale': 0}]}})
    assert band_sources(scene, ['B04'], 10, override)[0].scale == 0.0001
    with pytest.raises(GrafalignError, match="no band 'B04:0'"):
        band_sources(scene, ['B04:0'], 10)


@pytest.mark.parametrize(('unit', 'metres'), [('km', 1000.0), ('us-ft', 1200 / 3937)])
def test_units_of_the_crs_decide_the_overview(tmp_path: Path, unit: str, metres: float) -> None:
    """A raster in kilometres or feet is read at full resolution where the tile has its resolution."""
    board = (np.indices((256, 256)).sum(0) % 2 * 200 + 20).astype('uint8')[None]
    step = 10 / metres
    transform = Affine(step, 0, LEFT / metres, 0, -step, TOP / metres)
    href = write(tmp_path / 'a.tif', board, crs=f'+proj=utm +zone=25 +units={unit} +datum=WGS84', transform=transform)
    with rasterio.open(href, 'r+') as file:
        file.build_overviews([2, 4, 8])
    found = cut(bands_of((href, 1)), [TileGrid(32, 10).geobox(EPSG, LEFT + 320, TOP - 320)])[0]
    assert float(found.pixels.std()) > 90  # an overview is grey


def test_files_without_a_grid_are_told_with_the_remedy(tmp_path: Path) -> None:
    """Ground control points alone (Sentinel-1 GRD), or no CRS at all: one sentence with what to do."""
    profile = {'driver': 'GTiff', 'count': 1, 'width': 64, 'height': 64, 'dtype': 'uint16'}
    for name, points in (('gcp.tif', True), ('bare.tif', False)):
        with rasterio.open(tmp_path / name, 'w', **profile) as file:
            file.write(np.ones((1, 64, 64), dtype='uint16'))
            if points:
                corners = ((0, 0), (0, 64), (64, 0), (64, 64))
                gcps = [GroundControlPoint(r, c, LEFT + 10 * c, TOP - 10 * r) for r, c in corners]
                file.gcps = (gcps, f'EPSG:{EPSG}')
    reason = cut(bands_of((str(tmp_path / 'gcp.tif'), 1)), [BOX])[0].reason
    assert 'ground control points' in reason and 'gdalwarp' in reason
    assert 'gdal_edit.py -a_srs' in cut(bands_of((str(tmp_path / 'bare.tif'), 1)), [BOX])[0].reason


# ---- hostile files ---------------------------------------------------------------------------------------------------


def test_a_block_is_believed_only_up_to_what_a_block_can_hold(tmp_path: Path, server: RangeServer) -> None:
    """A directory that claims four gigabytes for a block of 256 kB does not make us fetch them."""
    href = write(tmp_path / 'a.tif', np.ones((1, 512, 512), 'uint8'), tiled=True, blockxsize=512, blockysize=512)
    content = bytearray(Path(href).read_bytes())
    count = int.from_bytes(content[content.index(b'\x45\x01\x04\x00\x01\x00\x00\x00') + 8 :][:4], 'little')  # tag 325
    at = content.index(b'\x45\x01\x04\x00\x01\x00\x00\x00') + 8
    assert count == 512 * 512
    content[at : at + 4] = (2**32 - 1).to_bytes(4, 'little')
    content += bytes(40 << 20)
    (tmp_path / 'a.tif').write_bytes(content)
    reader = RangeReader(retries=0)
    cut(bands_of((server.url('a.tif'), 1)), [BOX], reader)
    assert reader.traffic.bytes < 2 << 20


@pytest.mark.parametrize('where', ['disk', 'server'])
def test_overviews_in_another_file_are_not_followed(tmp_path: Path, server: RangeServer, where: str) -> None:
    """GDAL opens whatever a TIFF's OVERVIEW_FILE names: another file of this machine, or any address."""
    with rasterio.open(write(tmp_path / 'other.tif', np.ones((1, 48, 48), 'uint8')), 'r+'):
        pass
    href = write(tmp_path / 'a.tif', np.full((1, 96, 96), 7, 'uint8'))
    with rasterio.open(href, 'r+') as file:
        file.update_tags(ns='OVERVIEWS', OVERVIEW_FILE=str(tmp_path / 'other.tif'))
    found = cut(bands_of((href if where == 'disk' else server.url('a.tif'), 1)), [BOX])[0]
    assert isinstance(found, Uncut) and 'names another file' in found.reason


def test_a_local_scene_may_be_no_vrt(tmp_path: Path) -> None:
    """A VRT may name any file of this machine, whoever wrote it."""
    href = write(tmp_path / 'a.tif', np.ones((1, 96, 96), 'uint8'))
    vrt = tmp_path / 'a.vrt'
    vrt.write_text(
        f'<VRTDataset rasterXSize="96" rasterYSize="96"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename>{href}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    assert 'is XML (a VRT?)' in cut([BandSource(str(vrt), 1, 1.0, 0.0, ())], [BOX])[0].reason
