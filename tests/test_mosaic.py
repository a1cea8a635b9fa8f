"""Tiles over the seam of two sheets, the buffer between splits, and what pairing tells of its pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import yaml
from PIL import Image
from pyproj import Transformer

from grafalign.config import load_settings
from grafalign.errors import GrafalignError
from grafalign.pairing import Recipe, pair
from grafalign.pairing.explain import explain
from grafalign.pairing.pixel_shares import by_scene, shares_of
from grafalign.store import PairStore

EPSG, LEFT, TOP, SHEET = 32632, 500_000.0, 5_000_000.0, 2000.0
"""Sheets of 2 km side by side, 10 m a pixel."""
TO_DEGREES = Transformer.from_crs(EPSG, 4326, always_xy=True)


def sheet(
    folder: Path, name: str, col: int, row: int, value: int, when: str, dtype: str = 'uint8', **more: Any
) -> dict[str, Any]:
    """Write one sheet and give its item, with the outline of the file."""
    left, top = LEFT + col * SHEET, TOP - row * SHEET
    profile = {'driver': 'GTiff', 'count': 1, 'width': 200, 'height': 200, 'dtype': dtype, 'crs': f'EPSG:{EPSG}'}
    transform = rasterio.transform.from_origin(left, top, 10, 10)
    with rasterio.open(
        folder / f'{name}.tif', 'w', **profile, transform=transform, tiled=True, blockxsize=64, blockysize=64
    ) as file:
        file.write(np.full((1, 200, 200), value, dtype))
    x, y = left + SHEET * np.array([0, 1, 1, 0, 0]), top - SHEET * np.array([0, 0, 1, 1, 0])
    outline = shapely.Polygon(np.stack(TO_DEGREES.transform(x, y), axis=1))
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': name,
        'collection': 'ortho',
        'geometry': shapely.geometry.mapping(outline),
        'bbox': list(outline.bounds),
        'properties': {'datetime': when, **more},
        'links': [],
        'assets': {'b': {'href': f'{name}.tif', 'type': 'image/tiff'}},
    }


def recipe_of(folder: Path, items: list[dict[str, Any]], places: list[tuple[float, float]], **more: Any) -> Recipe:
    """A recipe for photos at places (metres right and down of the first sheet's corner)."""
    rows = []
    for number, (right, down) in enumerate(places):
        lon, lat = TO_DEGREES.transform(LEFT + right, TOP - down)
        Image.new('RGB', (16, 16), (number, 9, 9)).save(folder / f'p{number}.jpg')
        rows.append((f'p{number}', f'p{number}.jpg', lon, lat, '2021-06-02T00:00:00Z'))
    pd.DataFrame(rows, columns=['photo_id', 'uri', 'lon', 'lat', 'taken_at']).to_csv(folder / 'photos.csv', index=False)
    (folder / 'items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    content = {
        'photos': {'table': str(folder / 'photos.csv')},
        'scenes': {'items': str(folder / 'items.json')},
        'sensor': {
            'name': 's',
            'bands': ['b'],
            'gsd_m': 10,
            'size_px': 32,
            'value_range': [0, 255],
            **more.pop('sensor', {}),
        },
        'split': {'block_km': 20.0, 'shares': {'train': 1.0, 'val': 0.0, 'test': 0.0}},
        **more,
    }
    (folder / 'recipe.yaml').write_text(yaml.safe_dump(content))
    return load_settings(folder / 'recipe.yaml', Recipe)


SEAM = [(1950.0, 300.0 + 400 * i) for i in range(4)]
"""Photos 50 m left of the seam between the first two sheets: each tile reaches 110 m beyond it."""


def test_a_tile_over_a_seam_is_a_mosaic_of_its_day(tmp_path: Path) -> None:
    """Every tile is whole, takes each pixel from the sheet it lies in, and says which sheets it is made of."""
    day = '2021-06-01T10:00:00Z'
    items = [sheet(tmp_path, 'west', 0, 0, 50, day), sheet(tmp_path, 'east', 1, 0, 90, '2021-06-01T10:00:20Z')]
    recipe = recipe_of(tmp_path, items, SEAM)
    told = explain(recipe)
    assert told['tiles_over_seams'] == told['tiles'] == 4
    summary = pair(recipe, tmp_path / 'store')
    store = PairStore(tmp_path / 'store')
    assert summary.tiles == 4 and (store.tiles['nodata_fraction'] == 0).all()
    assert [list(m) for m in store.tiles['mosaic']] == [['west', 'east']] * 4
    for number, row in store.tiles.iterrows():
        pixels = store.read_tile(int(number))[0]
        east = row['transform'][2] + 10 * (np.arange(32) + 0.5) > LEFT + SHEET
        np.testing.assert_array_equal(pixels, np.broadcast_to(np.where(east, 90, 50), (32, 32)))
    used = gpd.read_parquet(tmp_path / 'store' / 'scenes.parquet')
    assert set(used['id']) == {'west', 'east'}


@pytest.mark.parametrize(
    ('mosaic', 'when', 'dtype'),
    [('none', '2021-06-01', 'uint8'), ('day', '2021-06-02', 'uint8'), ('day', '2021-06-01', 'uint16')],
)
def test_tiles_are_no_mosaic_of_other_days_or_types(tmp_path: Path, mosaic: str, when: str, dtype: str) -> None:
    """Another day, another data type or `mosaic: none`: what the best scene lacks stays missing."""
    items = [
        sheet(tmp_path, 'west', 0, 0, 50, '2021-06-01T10:00:00Z'),
        sheet(tmp_path, 'east', 1, 0, 90, f'{when}T10:00:00Z', dtype),
    ]
    recipe = recipe_of(tmp_path, items, SEAM[:1], sensor={'mosaic': mosaic}, max_nodata=0.5)
    pair(recipe, tmp_path / 'store')
    tiles = PairStore(tmp_path / 'store').tiles
    assert tiles['nodata_fraction'][0] == pytest.approx(11 / 32, abs=1 / 32) and list(tiles['mosaic'][0]) == ['west']


def test_four_sheets_meet_in_a_corner(tmp_path: Path) -> None:
    """A tile over the corner is made of all four."""
    day = '2021-06-01T10:00:00Z'
    items = [sheet(tmp_path, f's{c}{r}', c, r, 20 + 10 * c + 40 * r, day) for c in (0, 1) for r in (0, 1)]
    pair(recipe_of(tmp_path, items, [(2010.0, 1980.0)]), tmp_path / 'store')
    store = PairStore(tmp_path / 'store')
    assert store.tiles['nodata_fraction'][0] == 0 and set(store.tiles['mosaic'][0]) == {'s00', 's01', 's10', 's11'}
    assert set(np.unique(store.read_tile(0))) == {20, 30, 60, 70}


def test_the_reason_of_a_rejected_tile_is_that_of_its_best_scene(tmp_path: Path) -> None:
    """A scene that lacks a third of the tile is what a user can act on, not one that lacks all but a sliver."""
    items = [
        sheet(tmp_path, 'most', 0, 0, 50, '2021-06-01T10:00:00Z'),
        sheet(tmp_path, 'sliver', 1, 0, 90, '2021-06-05T10:00:00Z'),
        sheet(tmp_path, 'whole', 0, 3, 90, '2021-06-01T10:00:00Z'),
    ]
    pair(recipe_of(tmp_path, items, [SEAM[0], (1000.0, 7000.0)]), tmp_path / 'store')
    rejected = PairStore(tmp_path / 'store').rejected
    row = rejected[rejected['kind'] == 'tile'].iloc[0]
    assert row['reason'] == 'too many missing pixels' and row['detail'].startswith('34.4 % nodata in the best')


def test_splits_keep_their_distance(tmp_path: Path) -> None:
    """No tile lies within the buffer of a block of another split; what is dropped for it is counted."""
    items = [sheet(tmp_path, 's', 0, 0, 50, '2021-06-01T10:00:00Z')]
    places = [(x, y) for x in np.arange(160, 1900, 90.0) for y in np.arange(160, 1900, 90.0)]
    split = {'block_km': 0.6, 'shares': {'train': 0.5, 'val': 0.0, 'test': 0.5}}
    tiles = {}
    for buffer in (0.0, 40.0):
        recipe = recipe_of(tmp_path, items, places, split={**split, 'buffer_m': buffer}, sensor={'size_px': 8})
        pair(recipe, tmp_path / f'store{buffer:g}')
        store = PairStore(tmp_path / f'store{buffer:g}')
        tiles[buffer] = store.tiles.to_crs(EPSG)
        train, test = (shapely.union_all(g.geometry.to_numpy()) for _, g in tiles[buffer].groupby('split'))
        assert train.distance(test) >= 2 * buffer - 1
        assert ('tile lies within 40 m of another split' in set(store.rejected['reason'])) == bool(buffer)
    assert 0 < len(tiles[40.0]) < len(tiles[0.0])


def test_the_default_buffer_is_a_tile_side(tmp_path: Path) -> None:
    """Stated in the recipe's own words."""
    items = [sheet(tmp_path, 's', 0, 0, 50, '2021-06-01T10:00:00Z')]
    assert recipe_of(tmp_path, items, SEAM).buffer_m == 320


def test_outlines_over_the_antimeridian_are_two_parts(tmp_path: Path) -> None:
    """RFC 7946, 3.1.9; a region on either side finds the tile."""
    profile = {'driver': 'GTiff', 'count': 1, 'width': 260, 'height': 260, 'dtype': 'uint8', 'crs': 'EPSG:4326'}
    with rasterio.open(
        tmp_path / 'a.tif', 'w', **profile, transform=rasterio.transform.from_origin(179.987, 0.013, 1e-4, 1e-4)
    ) as file:
        file.write(np.full((1, 260, 260), 50, 'uint8'))
    item = sheet(tmp_path, 'unused', 0, 0, 1, '2021-06-01T10:00:00Z')
    item |= {
        'geometry': shapely.geometry.mapping(shapely.box(179.987, -0.013, 180.013, 0.013)),
        'bbox': [179.987, -0.013, -179.987, 0.013],
    }
    item['assets']['b']['href'] = 'a.tif'
    recipe = recipe_of(tmp_path, [item], [(0.0, 0.0)])
    pd.DataFrame(
        [('p0', 'p0.jpg', 179.9999, 0.001, '2021-06-02')], columns=['photo_id', 'uri', 'lon', 'lat', 'taken_at']
    ).to_csv(tmp_path / 'photos.csv', index=False)
    pair(recipe, tmp_path / 'store')
    outline = PairStore(tmp_path / 'store').tiles.geometry[0]
    assert outline.geom_type == 'MultiPolygon' and outline.bounds[0] >= -180 and outline.bounds[2] <= 180
    assert outline.intersects(shapely.box(179.9, -1, 179.9995, 1)) and outline.intersects(
        shapely.box(-179.9999, -1, -179.9, 1)
    )


def test_shares_of_odd_numbers_are_those_of_a_loop() -> None:
    """Share outside the range and share of zeros, over the pixels that are there."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 20, (3, 9, 9)).astype('uint16')
    missing = rng.random((9, 9)) < 0.3
    scale, offset, span = (0.1, 0.2, -0.1), (-0.5, 0.0, 1.0), (0.0, 1.0)
    outside = zero = count = 0
    for band in range(3):
        for row in range(9):
            for col in range(9):
                if not missing[row, col]:
                    value = float(pixels[band, row, col]) * scale[band] + offset[band]
                    outside += not span[0] - 1e-9 <= value <= span[1] + 1e-9
                    zero += pixels[band, row, col] == 0
                    count += 1
    assert shares_of(pixels, missing, scale, offset, span) == pytest.approx((outside / count, zero / count))


def test_pairing_tells_odd_numbers_by_scene(tmp_path: Path) -> None:
    """A scene whose numbers lie outside the range, or that is full of NaN, is named."""
    day = '2021-06-01T10:00:00Z'
    items = [sheet(tmp_path, 'good', 0, 0, 50, day), sheet(tmp_path, 'bright', 2, 0, 250, day)]
    recipe = recipe_of(tmp_path, items, [(1000.0, 1000.0), (5000.0, 1000.0)], sensor={'value_range': [0, 100]})
    pair(recipe, tmp_path / 'store')
    whole, worst = by_scene(PairStore(tmp_path / 'store').tiles)
    assert whole.outside == 0.5 and [(s.name, s.outside) for s in worst] == [('bright', 1.0)]


# ---- early refusals --------------------------------------------------------------------------------------------------


def test_a_source_that_cannot_be_used_is_told_before_photos_are_read(tmp_path: Path) -> None:
    """A missing file, or bands that its items lack: the sentence is of the scenes, though the photos are bad, too."""
    items = [sheet(tmp_path, 's', 0, 0, 50, '2021-06-01T10:00:00Z')]
    recipe = recipe_of(tmp_path, items, SEAM)
    (tmp_path / 'photos.csv').write_text('nothing')
    with pytest.raises(GrafalignError, match="no band 'red'"):
        sensor = recipe.sensor.model_copy(update={'bands': ['red']})
        pair(recipe.model_copy(update={'sensor': sensor}), tmp_path / 'one')
    (tmp_path / 'items.json').unlink()
    with pytest.raises(GrafalignError, match=r'There is no file .*items\.json'):
        pair(recipe, tmp_path / 'other')


def test_mixed_data_types_are_refused_before_anything_is_cut(tmp_path: Path) -> None:
    """Not after hours of downloads: both scenes are named, and there is no tile yet."""
    day = '2021-06-01T10:00:00Z'
    items = [sheet(tmp_path, 'a', 0, 0, 50, day), sheet(tmp_path, 'b', 2, 0, 50, day, 'int16')]
    recipe = recipe_of(tmp_path, items, [(1000.0, 1000.0), (5000.0, 1000.0)])
    with pytest.raises(GrafalignError, match=r'int16 \(b\) and uint8 \(a\)'):
        pair(recipe, tmp_path / 'store')
    assert not (tmp_path / 'store' / 'tiles').exists()


def test_a_limit_of_clouds_without_effect_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No scene has a classification, none says how cloudy it is."""
    items = [sheet(tmp_path, 's', 0, 0, 50, '2021-06-01T10:00:00Z')]
    scenes = {'items': str(tmp_path / 'items.json'), 'max_cloud_percent': 10}
    pair(
        recipe_of(tmp_path, items, SEAM[:1], max_tile_cloud_percent=10.0, max_nodata=1.0, scenes=scenes),
        tmp_path / 'store',
    )
    shown = capsys.readouterr().err
    assert (
        'max_tile_cloud_percent had no effect on 1 tiles' in shown and 'scenes.max_cloud_percent had no effect' in shown
    )
