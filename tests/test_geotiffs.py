"""Scenes from a folder of GeoTIFFs: bands, times and outlines follow from the files, and are looked up once."""

from __future__ import annotations

import json
import os
import shutil
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
import shapely
from pyproj import Transformer
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.enums import ColorInterp

from grafalign.config import load_settings, parse_settings
from grafalign.errors import GrafalignError
from grafalign.pairing import Recipe, pair
from grafalign.pairing.explain import explain
from grafalign.scenes import SceneSource, band_sources, load_scenes
from grafalign.scenes.geotiffs import item_of
from grafalign.scenes.items import FoundScenes
from grafalign.scenes.scene import ItemError
from grafalign.store import PairStore
from tests.commands import Command, contents, refused, write_yaml
from tests.test_mosaic import SEAM, recipe_of, sheet

EARTH = (-180.0, -90.0, 180.0, 90.0)
PLACE = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
DAY = datetime(2021, 6, 1, tzinfo=timezone.utc)


def write(
    path: Path,
    pixels: npt.NDArray[Any] | None = None,
    *,
    crs: str | None = 'EPSG:32632',
    names: tuple[str, ...] = (),
    colours: tuple[ColorInterp, ...] = (),
    tags: dict[str, str] | None = None,
    domain: str | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    overviews: list[int] | None = None,
    **profile: Any,
) -> Path:
    """Write a GeoTIFF of pixels [C, H, W], 3 x 32 x 32 by default, with pixels of 10 m."""
    pixels = np.full((3, 32, 32), 7, np.uint8) if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {'driver': 'GTiff', 'count': len(pixels), 'height': pixels.shape[1], 'width': pixels.shape[2]}
    settings |= {'dtype': pixels.dtype, 'crs': crs, 'transform': PLACE if crs else None, 'photometric': 'minisblack'}
    with rasterio.open(path, 'w', **settings | profile) as file:
        if colours:  # before the pixels: GDAL would write them beside the file
            file.colorinterp = colours
        file.write(pixels)
        for number, name in enumerate(names, start=1):
            if name:
                file.set_band_description(number, name)
        if mask is not None:
            file.write_mask(mask)
        file.update_tags(ns=domain, **(tags or {}))
    if overviews:
        with rasterio.open(path, 'r+') as file:
            file.build_overviews(overviews, rasterio.enums.Resampling.nearest)
    return path


def scenes_of(folder: Path, **settings: Any) -> FoundScenes:
    """All scenes of a folder."""
    return load_scenes(SceneSource(folder=folder, **settings), EARTH)


RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@pytest.mark.parametrize(
    ('names', 'colours', 'bands', 'numbers'),
    [
        ((), RGB, ['blue', 'red'], [3, 1]),
        ((), (*RGB, ColorInterp.nir), ['nir'], [4]),
        (('blue', 'green', 'red'), RGB, ['red', 'green', 'blue'], [3, 2, 1]),
        (('B02', '', 'B08'), (), ['B02', 'b2', 'b08'], [1, 2, 3]),
        (('green',), (ColorInterp.red, ColorInterp.green, ColorInterp.blue), ['green', 'b2', 'blue'], [1, 2, 3]),
        ((), (), ['b3', 'image:2'], [3, 2]),
        (('', '', '', 'nir'), (*RGB, ColorInterp.alpha), ['nir', 'green'], [4, 2]),
    ],
    ids=['colours', 'infrared', 'descriptions first', 'descriptions', 'both', 'neither', 'described alpha'],
)
def test_bands_are_called_as_the_file_says(
    tmp_path: Path, names: tuple[str, ...], colours: tuple[ColorInterp, ...], bands: list[str], numbers: list[int]
) -> None:
    """Descriptions name bands, else colours do, else numbers; scale, offset and nodata are left to the file."""
    pixels = np.full((max(3, len(names), len(colours)), 32, 32), 7, np.uint8)
    found = band_sources(item_of(write(tmp_path / 'a.tif', pixels, names=names, colours=colours), DAY), bands, 10)
    assert [band.index for band in found] == numbers
    assert {(band.href, band.scale, band.offset, band.nodata) for band in found} == {
        (str(tmp_path / 'a.tif'), None, None, ())
    }


def test_alpha_is_no_band(tmp_path: Path) -> None:
    """An alpha band has no name and stays the mask of the others."""
    path = write(tmp_path / 'a.tif', np.full((4, 32, 32), 7, np.uint8), colours=(*RGB, ColorInterp.alpha))
    item = item_of(path, DAY)
    with pytest.raises(GrafalignError, match=r"no band 'alpha'.*names it has: image, red, green, blue\."):
        band_sources(item, ['alpha'], 10)
    assert band_sources(item, ['red'], 10)[0].data_bands == (1, 2, 3)


@pytest.mark.parametrize(
    ('name', 'tags', 'domain', 'when'),
    [
        ('a', {'TIFFTAG_DATETIME': '2019:02:03 04:05:06'}, None, '2019-02-03T04:05:06'),
        ('a', {'ACQUISITIONDATETIME': '2018-02-03 04:05:06'}, 'IMAGERY', '2018-02-03T04:05:06'),
        ('20230501', {'TIFFTAG_DATETIME': '2019:02:03 04:05:06'}, None, '2019-02-03T04:05:06'),
        ('20230501', {'TIFFTAG_DATETIME': 'unknown'}, None, '2023-05-01T00:00:00'),
        ('S2_2023-05-01_rgb', {}, None, '2023-05-01T00:00:00'),
        ('S2A_20230501T100031_N0509', {}, None, '2023-05-01T10:00:31'),
        ('tile_19691231_20231301_20230501_20240101', {}, None, '2023-05-01T00:00:00'),
        ('id_1202305011_29990101', {}, None, '2021-06-01T00:00:00'),
        ('plain', {}, None, '2021-06-01T00:00:00'),
    ],
)
def test_times_are_those_of_tags_names_and_the_setting(
    tmp_path: Path, name: str, tags: dict[str, str], domain: str | None, when: str
) -> None:
    """A tag says when, else the first date of the name that can be, else the setting."""
    write(tmp_path / f'{name}.tif', tags=tags, domain=domain)
    (scene,) = scenes_of(tmp_path, date='2021-06-01')
    assert scene.when == datetime.fromisoformat(when).replace(tzinfo=timezone.utc)


def test_a_day_that_has_not_come_is_no_date(tmp_path: Path) -> None:
    """Today is a date of a name, tomorrow is not."""
    today = datetime.now(timezone.utc).date()
    later = today + timedelta(days=2)
    write(tmp_path / f'{later:%Y%m%d}_{today:%Y%m%d}.tif')
    assert scenes_of(tmp_path)[0].when.date() == today


def test_a_raster_without_a_date_is_rejected_with_the_remedy(tmp_path: Path, command: Command) -> None:
    """Nothing is guessed: the reason names the setting, also where no raster has a date."""
    write(tmp_path / 'in' / 'plain.tif')
    sentence = refused(
        command('pair', write_yaml(tmp_path / 'recipe.yaml', recipe_content(tmp_path)), tmp_path / 'store'),
        'plain',
        'scenes.date: YYYY-MM-DD',
    )
    assert str(tmp_path / 'in') in sentence
    write(tmp_path / 'in' / 'dated_20210601.tif')
    found = scenes_of(tmp_path / 'in')
    assert [s.item_id for s in found] == ['dated_20210601'] and found.rejected[0][1] == 'plain'


def recipe_content(folder: Path) -> dict[str, Any]:
    """A recipe for `folder/in`, with one photo in the middle of what `write` writes."""
    recipe_of(folder, [], [(160.0, 160.0)])
    sensor = {'name': 's', 'bands': ['b1'], 'gsd_m': 10, 'size_px': 8, 'value_range': [0, 255]}
    return {
        'photos': {'table': str(folder / 'photos.csv')},
        'scenes': {'folder': str(folder / 'in')},
        'sensor': sensor,
        'split': {'shares': {'train': 1.0}},
    }


def slanted(side: int) -> npt.NDArray[np.bool_]:
    """A square that is turned by 20 degrees, [side, side]."""
    row, col = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    turn = np.deg2rad(20)
    across, down = col * np.cos(turn) - row * np.sin(turn), col * np.sin(turn) + row * np.cos(turn)
    return (abs(across) < 0.3) & (abs(down) < 0.35)


def masked(path: Path, valid: npt.NDArray[np.bool_], kind: str) -> Path:
    """Write pixels whose missing ones are told in one of several ways."""
    tiled = {'tiled': True, 'blockxsize': 64, 'blockysize': 64}
    pixels = np.where(valid, np.arange(1, valid.size + 1).reshape(valid.shape) % 199 + 1, 0)
    match kind.split()[0]:
        case 'nodata':
            # a band that is 0 everywhere and strips of rows: a pixel is missing where it is so in all bands
            return write(path, np.stack([0 * pixels, pixels]).astype(np.uint16), nodata=0, interleave='band')
        case 'NaN':
            return write(path, np.where(valid, pixels, np.nan)[None].astype(np.float32), **tiled)
        case 'alpha':
            both = np.stack([pixels, valid * 255]).astype(np.uint8)
            return write(path, both, colours=(ColorInterp.gray, ColorInterp.alpha), **tiled)
        case 'mask':
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK='beside' not in kind):
                return write(path, pixels[None].astype(np.uint8), mask=valid, **tiled)
        case _:
            return write(path, pixels[None].astype(np.uint8), nodata=0, overviews=[2, 4], **tiled)


@pytest.mark.parametrize('kind', ['nodata in strips', 'NaN', 'alpha', 'mask', 'mask beside', 'overviews'])
def test_the_outline_holds_all_valid_pixels_and_little_else(tmp_path: Path, kind: str) -> None:
    """Each valid pixel lies in the outline, whose area is at most a tenth larger than their convex hull's."""
    valid = slanted(2500 if kind == 'overviews' else 300)
    item = item_of(masked(tmp_path / 'a.tif', valid, kind), DAY)
    outline = shapely.geometry.shape(item['geometry'])
    rows = np.repeat(np.flatnonzero(valid.any(axis=1)), 2)  # of each row the first and the last: the outline is convex
    cols = np.stack([valid.argmax(axis=1), len(valid) - 1 - valid[:, ::-1].argmax(axis=1)], axis=1)[rows[::2]].ravel()
    places = Transformer.from_crs(32632, 4326, always_xy=True).transform(*(PLACE @ (cols + 0.5, rows + 0.5)))
    assert shapely.contains_xy(outline, *places).all()
    assert outline.area < 1.1 * shapely.MultiPoint(np.stack(places, axis=1)).convex_hull.area


def test_an_item_without_missing_pixels_has_the_outline_of_its_grid(tmp_path: Path) -> None:
    """Edges follow the grid, which is curved in degrees; the item follows STAC's core schema."""
    place = rasterio.transform.from_origin(200_000, 7_000_000, 3000, 3000)
    item = item_of(write(tmp_path / 'a.tif', np.ones((1, 100, 200), np.uint8), transform=place), DAY)
    outline = shapely.geometry.shape(item['geometry'])
    to_grid = Transformer.from_crs(4326, 32632, always_xy=True).transform
    back = shapely.transform(shapely.segmentize(outline, 0.01), lambda xy: np.stack(to_grid(*xy.T), axis=1))
    assert back.hausdorff_distance(shapely.box(200_000, 6_700_000, 800_000, 7_000_000)) < 20
    asset = item['assets']['image']
    assert asset['gsd'] == 3000 and asset['proj:code'] == 'EPSG:32632' and asset['proj:shape'] == [100, 200]
    stored = json.loads(json.dumps(item))
    JsonSchemaSTACValidator().validate_core(stored, pystac.STACObjectType.ITEM, '1.1.0')


def test_an_outline_over_the_antimeridian_is_cut(tmp_path: Path) -> None:
    """A raster of UTM zone 1 that begins before longitude 180 is found on both sides and nowhere else."""
    write(
        tmp_path / 'a_20210601.tif',
        crs='EPSG:32601',
        transform=rasterio.transform.from_origin(134_000, 100_000, 2000, 2000),
    )
    source = SceneSource(folder=tmp_path)
    for box in ((179.8, 0.5, 179.9, 0.6), (-179.9, 0.5, -179.8, 0.6)):
        assert load_scenes(source, box)[0].footprint.contains(shapely.box(*box))
    with pytest.raises(GrafalignError, match='none of its 1 items'):
        load_scenes(source, (0, 0, 10, 1))


def test_rasters_that_cannot_be_used_are_rejected_and_the_others_used(tmp_path: Path) -> None:
    """Each bad file is a row with its reason; a file of another format or a hidden one is no raster."""
    write(tmp_path / 'good_20210601.TIFF')
    write(tmp_path / 'nowhere_20210601.tif', crs=None)
    write(tmp_path / 'empty_20210601.tif', np.zeros((1, 32, 32), np.uint8), nodata=0)
    write(tmp_path / 'alpha_20210601.tif', np.ones((1, 32, 32), np.uint8), colours=(ColorInterp.alpha,))
    (tmp_path / 'text_20210601.tif').write_text('no picture')
    (tmp_path / '._good_20210601.tif').write_text('what macOS leaves')
    (tmp_path / 'notes.txt').write_text('no picture')
    points = [
        rasterio.control.GroundControlPoint(r, c, 500_000 + c, 5_000_000 - r) for r, c in ((0, 0), (0, 9), (9, 0))
    ]
    with rasterio.open(
        tmp_path / 'points_20210601.tif',
        'w',
        driver='GTiff',
        count=1,
        width=32,
        height=32,
        dtype='uint8',
        gcps=points,
        crs='EPSG:32632',
    ) as file:
        file.write(np.ones((1, 32, 32), np.uint8))
    found = scenes_of(tmp_path)
    assert [s.item_id for s in found] == ['good_20210601']
    assert {name.partition('_')[0]: reason for _, name, reason, _ in found.rejected} == {
        'nowhere': 'has no coordinate reference system; give it one (gdal_edit.py -a_srs EPSG:CODE FILE)',
        'points': 'has ground control points and no grid; warp it first (gdalwarp -t_srs EPSG:CODE IN OUT), or take a '
        'product that is terrain-corrected (RTC)',
        'empty': 'the raster has no valid pixel',
        'alpha': 'the raster has no band but alpha',
        'text': 'is neither TIFF nor JPEG 2000',
    }
    assert all(detail == str(tmp_path / f'{name}.tif') for _, name, _, detail in found.rejected)


def test_rasters_elsewhere_are_not_blamed_on_rejected_ones(tmp_path: Path) -> None:
    """Where a good raster lies elsewhere, the sentence says so."""
    write(tmp_path / 'good_20210601.tif')
    write(tmp_path / 'bad.tif')
    with pytest.raises(GrafalignError, match=r'none of its 2 items lies over the photos.*1 elsewhere, 1 rejected'):
        load_scenes(SceneSource(folder=tmp_path), (100, 0, 110, 1))


def test_files_of_one_stem_are_told_apart(tmp_path: Path) -> None:
    """An item is called as its file; where several are called so, the folder, and at last the suffix, is added."""
    for name in ('a/x.tif', 'b/x.tif', 'b/y.tif', 'z.tif', 'z.tiff'):
        write(tmp_path / name)
    found = scenes_of(tmp_path, date=date(2021, 6, 1))
    assert sorted(s.item_id for s in found) == ['a/x', 'b/x', 'y', 'z.tif', 'z.tiff']
    assert [s.item_id for s in scenes_of(tmp_path / 'b' / '*.tif', date=date(2021, 6, 1))] == ['x', 'y']
    assert len(scenes_of(tmp_path / '**' / 'x.tif', date=date(2021, 6, 1))) == 2


def test_no_raster_is_one_sentence(tmp_path: Path) -> None:
    """A folder without rasters, none at all and a pattern that fits nothing are named with the remedy."""
    for folder in (tmp_path, tmp_path / 'none', tmp_path / '*.tif'):
        with pytest.raises(GrafalignError, match=r'holds no raster; set scenes\.folder'):
            scenes_of(folder)


def test_settings_of_a_folder(tmp_path: Path) -> None:
    """There is one source, and a date belongs to a folder."""
    for content, sentence in (
        ({'folder': 'in', 'items': 'a.json'}, 'exactly one of `catalog`, `items`, `folder` and `api`'),
        ({'items': 'a.json', 'date': '2021-06-01'}, '`date` is for the rasters of `folder`'),
    ):
        with pytest.raises(GrafalignError, match=sentence):
            parse_settings(content, SceneSource, 'recipe.yaml')


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    """Items come from the cache while names, sizes, times and setting stay, and a damaged cache is made anew."""
    folder, cache = tmp_path / 'in', tmp_path / 'cache'
    path = write(folder / 'a.tif')
    write(folder / 'b.tif')

    def items(day: str = '2021-06-01') -> list[dict[str, Any]]:
        return [s.item for s in scenes_of(folder, date=day, cache=cache)]

    first, content, status = items(), path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))  # what cannot be opened was not opened
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert items() == first
    assert [i['id'] for i in items('2021-06-02')] == ['b']
    assert items() == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert [i['id'] for i in items()] == ['b']

    path.write_bytes(content)
    assert items() == first
    for kept in cache.rglob('*.json'):
        kept.write_text(kept.read_text().replace('"red"', '"blue"').replace('b1', 'b9'))
    assert items() == first
    for kept in cache.rglob('*.json'):
        kept.write_bytes(kept.read_bytes()[:100])
    assert items() == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A file where the cache should be a folder costs time and nothing else."""
    write(tmp_path / 'in' / 'a_20210601.tif')
    (tmp_path / 'cache').write_text('')
    assert len(scenes_of(tmp_path / 'in', cache=tmp_path / 'cache')) == 1


def test_a_folder_pairs_to_the_pixels_of_its_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tiles over a seam are those of an item file for the same rasters; a new raster is noticed and taken in."""
    day = '2021-06-01T00:00:00Z'
    (tmp_path / 'in').mkdir()
    items = [sheet(tmp_path / 'in', f'{n}_20210601', c, 0, 50 + 40 * c, day) for c, n in enumerate(('west', 'east'))]
    for item in items:
        item['assets']['b']['href'] = f'in/{item["id"]}.tif'
    by_items = recipe_of(tmp_path, items, [*SEAM, (1000.0, 5000.0)])
    scenes = [f'scenes={{folder: {tmp_path / "in"}}}', 'sensor.bands=[b1]']
    by_folder = load_settings(tmp_path / 'recipe.yaml', Recipe, scenes)
    estimate = explain(by_folder)
    assert (estimate['tiles_copied'], estimate['tiles_over_seams'], estimate['scenes']) == (4, 4, 1)
    pair(by_items, tmp_path / 'items')
    pair(by_folder, tmp_path / 'folder')
    one, other = PairStore(tmp_path / 'items'), PairStore(tmp_path / 'folder')
    assert list(one.tiles['tile_id']) == list(other.tiles['tile_id']) and len(one.tiles) == 4
    for number in range(4):
        np.testing.assert_array_equal(one.read_tile(number), other.read_tile(number))

    capsys.readouterr()
    sheet(tmp_path / 'in', 'south_20210601', 0, 2, 20, day)
    pair(by_folder, tmp_path / 'folder')
    assert 'scenes.folder has 3 files instead of 2' in ' '.join(capsys.readouterr().err.split())
    pair(by_folder, tmp_path / 'folder', update=True)
    pair(by_folder, tmp_path / 'anew')
    assert len(PairStore(tmp_path / 'folder').tiles) == 5
    assert contents(tmp_path / 'folder') == contents(tmp_path / 'anew')


def test_damaged_blocks_leave_the_others_to_be_used(tmp_path: Path) -> None:
    """Blocks that cannot be read count as valid: the rest of the raster can be used."""
    pixels = np.random.default_rng(0).random((1, 300, 300), dtype=np.float32)
    path = write(tmp_path / 'a_20210601.tif', pixels, compress='deflate', tiled=True, blockxsize=64, blockysize=64)
    whole, content = item_of(path), path.read_bytes()
    for start in range(10_000, len(content) - 10_000, 5000):
        content = content[:start] + bytes(500) + content[start + 500 :]
    path.write_bytes(content)
    with rasterio.open(path) as file, pytest.raises(rasterio.errors.RasterioIOError):
        file.read()
    assert item_of(path) == whole


def test_a_grid_that_lies_nowhere_is_rejected(tmp_path: Path) -> None:
    """Positions that a projection cannot bring back to Earth are a reason, not a traceback."""
    path = write(tmp_path / 'a.tif', transform=rasterio.transform.from_origin(1e12, 1e12, 10, 10))
    with pytest.raises(ItemError, match='leads to no place on Earth'):
        item_of(path, DAY)
    shutil.copy(path, tmp_path / 'copy.tif')
    with pytest.raises(GrafalignError, match='none of its 2 items can be used'):
        scenes_of(tmp_path, date='2021-06-01')
