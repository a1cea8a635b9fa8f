"""The map page holds the whole plan, stays small, loads nothing, and draws what it holds."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely

from grafalign.geo import TileGrid, project, utm_epsg
from grafalign.pairing import map_page
from grafalign.pairing.map_page import DEPTH, FINE, SPLITS, grid_position, mercator, page_data, quadkeys, write_map
from grafalign.pairing.plan import Plan, make_plan

GRID = TileGrid(64, 5)
SHARES = {'train': 0.6, 'val': 0.2, 'test': 0.2}


def town(lon: float, lat: float, count: int, km: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Positions around a place."""
    rng = np.random.default_rng(1)
    east, north = rng.normal(0, km / 111, (2, count))
    return (lon + east / np.cos(np.deg2rad(lat)) + 180) % 360 - 180, lat + north


def plan_of(lon: np.ndarray, lat: np.ndarray, grid: TileGrid = GRID) -> Plan:
    """A plan with all splits, dropped tiles and full ones."""
    return make_plan([f'p{i}' for i in range(len(lon))], lon, lat, grid, 3, 0, 1.5 * grid.side_m / 1000, SHARES)


def numbers(text: str) -> Iterator[int]:
    """LEB128 from base64, byte by byte."""
    value = shift = 0
    for byte in base64.b64decode(text):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def cells(layer: dict[str, Any]) -> dict[tuple[int, int, int], int]:
    """Column, row and split to count."""
    read, key, found = numbers(layer['cells']), 0, {}
    for coded, count in zip(read, read, strict=True):
        step, split = divmod(coded, len(SPLITS) + 1)
        key += step
        x, y = (sum((key >> 2 * b + axis & 1) << b for b in range(DEPTH)) for axis in (0, 1))
        assert (x, y, split) not in found
        found[x, y, split] = count
    return found


def outlines(text: str) -> np.ndarray:
    """Thirteen numbers a tile, steps undone."""
    table = np.array(list(numbers(text)), dtype=np.int64).reshape(-1, 13)
    signed = np.where(table[:, 2:] % 2, -(table[:, 2:] + 1) // 2, table[:, 2:] // 2)
    return np.concatenate([table[:, :2], np.cumsum(signed, axis=0)], axis=1)


def splits_of_photos(plan: Plan, count: int) -> list[int]:
    """The split of every photo, one by one."""
    found = [len(SPLITS)] * count
    for pair in plan.pairs.itertuples():
        found[pair.photo] = SPLITS.index(plan.tiles['split'][pair.tile])
    return found


@pytest.mark.parametrize('room', [10**6, 900, 40])
def test_photos_are_counted_in_their_cells_by_split(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the room, cells equal a naive count at their level, and fit the room."""
    monkeypatch.setattr(map_page, 'PHOTO_BYTES', room)
    lon, lat = town(-0.1, 51.5, 400)
    plan = plan_of(lon, lat)
    layer = page_data(GRID, plan, lon, lat)['photos']
    x, y = grid_position(lon, lat, layer['depth'])
    expected = Counter(zip(x.tolist(), y.tolist(), splits_of_photos(plan, len(lon)), strict=True))
    assert cells(layer) == expected
    assert len(base64.b64decode(layer['cells'])) <= room
    assert (layer['depth'] == DEPTH) == (room == 10**6)


def test_counts_equal_the_plans() -> None:
    """Every split is there, and tiles and photos sum to the plan's, with those left out."""
    lon, lat = town(15.0, 60.0, 600, km=4)
    plan = plan_of(lon, lat)
    data = page_data(GRID, plan, lon, lat)
    assert data['splits'] == [*SPLITS, 'left out']
    assert data['photos']['counts'][-1] == len(plan.dropped) > 0
    assert data['photos']['counts'] == np.bincount(splits_of_photos(plan, 600), minlength=4).tolist()
    assert data['tiles']['counts'] == [int((plan.tiles['split'] == s).sum()) for s in SPLITS] + [0]
    assert min(data['tiles']['counts'][:3]) > 0
    alone = page_data(GRID, make_plan(['a'], lon[:1], lat[:1], GRID, 3, 0, 50, {'train': 1.0}), lon[:1], lat[:1])
    assert alone['photos']['counts'] == [1, 0, 0, 0]


@pytest.mark.parametrize(('lon', 'lat'), [(5.0, 45.0), (180.0, -17.0), (20.9, 78.0), (-70.0, -55.0)])
@pytest.mark.parametrize('grid', [GRID, TileGrid(224, 10), TileGrid(100, 2.5)])
def test_outlines_are_the_tiles(lon: float, lat: float, grid: TileGrid) -> None:
    """Ids, splits, photos and corners are the plan's, to a metre, across the antimeridian too."""
    places = town(lon, lat, 60, km=5)
    plan = plan_of(*places, grid)
    found = outlines(page_data(grid, plan, *places)['tiles']['outlines'])
    assert len(found) == len(plan.tiles) > 5
    photos = plan.pairs['tile'].value_counts()
    by_id = {tile.tile_id: (tile.Index, tile) for tile in plan.tiles.itertuples()}
    polygons = grid.polygons(*(plan.tiles[c].to_numpy() for c in ('epsg', 'left', 'top')))
    for split, count, epsg, left, top, x, y, ax, ay, bx, by, ox, oy in found:
        number, tile = by_id.pop(grid.tile_id(epsg, left * grid.gsd_m, top * grid.gsd_m))
        assert (SPLITS[split], count) == (tile.split, photos.get(number, 0))
        drawn = shapely.Polygon([(x, y), (x + ax, y + ay), (x + ax + bx + ox, y + ay + by + oy), (x + bx, y + by)])
        ring = np.stack(mercator(*shapely.get_coordinates(polygons[number]).T), axis=1) * 2**FINE
        ring[:, 0] -= np.round((ring[0, 0] - x) / 2**FINE) * 2**FINE
        metres = 40_075_017 / 2**FINE * np.cos(np.deg2rad(lat))
        assert shapely.hausdorff_distance(drawn, shapely.Polygon(ring)) * metres < 1
    assert not by_id


def test_too_many_tiles_are_counted_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for outlines, tiles are counted where their middles lie."""
    monkeypatch.setattr(map_page, 'TILE_BYTES', 300)
    lon, lat = town(-179.999, 12.0, 300)
    plan = plan_of(lon, lat)
    data = page_data(GRID, plan, lon, lat)
    assert 'outlines' not in data['tiles']
    middles = shapely.centroid(GRID.polygons(*(plan.tiles[c].to_numpy() for c in ('epsg', 'left', 'top'))))
    x, y = grid_position(shapely.get_x(middles), shapely.get_y(middles), data['tiles']['depth'])
    codes = [SPLITS.index(s) for s in plan.tiles['split']]
    assert cells(data['tiles']) == Counter(zip(x.tolist(), y.tolist(), codes, strict=True))


@pytest.mark.parametrize('lon', [0.0, 179.99, -179.99, 100.0])
def test_the_first_view_is_the_box_around_the_photos(lon: float) -> None:
    """The box holds all photos and touches them, also where they lie on both sides of the antimeridian."""
    lons, lats = town(lon, -17.0, 200)
    x, y, width, height = page_data(GRID, plan_of(lons, lats), lons, lats)['view']
    east, south = mercator(lons, lats)
    off = (east - x + 0.5) % 1 - 0.5
    assert 0 <= x < 1
    assert [off.min(), off.max()] == pytest.approx([-width / 2, width / 2], abs=3 / 2**DEPTH)
    assert [south.min(), south.max()] == pytest.approx([y - height / 2, y + height / 2], abs=3 / 2**DEPTH)


def test_a_cell_above_is_two_bits_less() -> None:
    """Quadkeys at a level are those of the deepest level, shifted."""
    lon, lat = np.random.default_rng(0).uniform((-180, -80), (180, 84), (500, 2)).T
    deep = quadkeys(*grid_position(lon, lat, DEPTH))
    for depth in (1, 9, 20):
        assert (deep >> 2 * (DEPTH - depth) == quadkeys(*grid_position(lon, lat, depth))).all()


def test_the_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    """No address, no tag that loads; names from files stay text."""
    lon, lat = town(5.0, 45.0, 30)
    bad = '<script>alert("1 & 2")</script>'
    write_map(tmp_path / 'new' / 'map.html', bad, GRID, plan_of(lon, lat), lon, lat, [(bad, bad), ('photos', '30')])
    page = (tmp_path / 'new' / 'map.html').read_text()
    assert not re.search(r'https?:|//[a-z]+\.|url\(|@import|<link|<img|<iframe|\bsrc=|\bhref=|fetch\(|\bimport\b', page)
    assert bad not in page
    assert page.count('alert(') == page.count('&lt;script&gt;alert(&#34;1 &amp; 2&#34;)&lt;/script&gt;') == 4
    assert page.count('<script') == 2
    for split in SPLITS:
        assert f'--{split})' in page


def test_a_page_for_the_whole_earth_is_small(tmp_path: Path) -> None:
    """Places spread so evenly that nothing can be summed away, each with its tile, stay within 5 MB."""
    count, grid = 400_000, TileGrid(224, 10)
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, count), np.rad2deg(np.arcsin(rng.uniform(-0.98, 0.99, count)))
    epsg = utm_epsg(lon, lat)
    left, top = np.empty((2, count))
    for zone in np.unique(epsg):
        here = epsg == zone
        left[here], top[here] = grid.corner(*project(lon[here], lat[here], int(zone)))
    for held in (count, 75_000):  # too many outlines, and about as many as there is room for
        tiles = pd.DataFrame({'tile_id': '', 'epsg': epsg, 'left': left, 'top': top})[:held]
        tiles['split'] = rng.choice(SPLITS, held)
        pairs = pd.DataFrame({'tile': np.arange(held), 'photo': np.arange(held), 'row': 112.0, 'col': 112.0})
        write_map(tmp_path / 'map.html', 'Earth', grid, Plan(tiles, pairs, pd.DataFrame()), lon, lat, [])
        assert (tmp_path / 'map.html').stat().st_size < 5_000_000
        assert ('outlines' in page_data(grid, Plan(tiles, pairs, pd.DataFrame()), lon, lat)['tiles']) == (held < count)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('chromium') is None, reason='needs chromium')
@pytest.mark.parametrize('lon', [5.0, 180.0])
def test_a_browser_draws_every_tile_and_photo(lon: float, tmp_path: Path) -> None:
    """The page's script finds as many outlines and photos in the first view as the plan has, and as many far out."""
    places = town(lon, 45.0, 200)
    plan = plan_of(*places)
    page = tmp_path / 'map.html'
    write_map(page, 'Town', GRID, plan, *places, [])
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run']
    for view, expected in (
        ('', {'tiles': len(plan.tiles), 'points': 200, 'summed': None}),
        (f'#3/45/{lon}', {'tiles': None, 'points': None, 'summed': 200}),
    ):
        profile = f'--user-data-dir={tmp_path / "profile"}'
        command = ['chromium', *options, profile, '--window-size=1200,800', '--dump-dom', page.as_uri() + view]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        found = re.search(r'<body[^>]* data-drawn="([^"]*)"', shown)
        assert found and json.loads(html.unescape(found[1])) == expected
