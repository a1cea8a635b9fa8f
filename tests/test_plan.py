"""The planner keeps GRAFT's greedy rule, whatever the order of the rows."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from grafalign.geo import TileGrid, blocks_touched
from grafalign.pairing.plan import Plan, make_plan, split_of_blocks, visiting_order

GRID = TileGrid(64, 5)
SHARES = {'train': 0.6, 'val': 0.2, 'test': 0.2}
CENTRES = [(-30.0, 45.0), (3.0, 60.0), (179.999, 12.0), (-179.999, -33.0), (20.9, 78.0), (15.0, 0.0)]


def photos(lon: np.ndarray, lat: np.ndarray) -> gpd.GeoDataFrame:
    """A photo table at the given places."""
    ids = [f'p{i:05d}' for i in range(len(lon))]
    return gpd.GeoDataFrame({'photo_id': ids}, geometry=gpd.points_from_xy(lon, lat), crs=4326)


def cluster(centre: tuple[float, float], count: int, seed: int, km: float = 2.0) -> gpd.GeoDataFrame:
    """Photos around a place."""
    rng = np.random.default_rng(seed)
    lat = centre[1] + rng.normal(0, km / 111, count)
    lon = centre[0] + rng.normal(0, km / 111 / np.cos(np.deg2rad(centre[1])), count)
    return photos((lon + 180) % 360 - 180, lat)


def plan(
    table: gpd.GeoDataFrame, max_photos: int = 25, block_km: float = 50, shares: dict[str, float] | None = None
) -> Plan:
    """The plan of a table on the test grid."""
    return make_plan(table, GRID, max_photos, 0, block_km, shares or {'train': 1.0})


@pytest.mark.parametrize('centre', CENTRES)
def test_every_photo_is_in_a_tile_that_holds_it(centre: tuple[float, float]) -> None:
    """Without splits and caps every photo is paired, and its row and column, recomputed alone, fall inside its tile."""
    table = cluster(centre, 120, 1)
    found = plan(table, max_photos=1000)
    assert set(found.pairs['photo']) == set(range(len(table)))
    for row in found.pairs.sample(40, random_state=0).itertuples():
        tile = found.tiles.iloc[row.tile]
        point = table.geometry.iloc[row.photo]
        x, y = Transformer.from_crs(4326, int(tile['epsg']), always_xy=True).transform(point.x, point.y)
        assert row.col == pytest.approx((x - tile['left']) / GRID.gsd_m, abs=1e-6)
        assert row.row == pytest.approx((tile['top'] - y) / GRID.gsd_m, abs=1e-6)
        assert 0 <= row.row < GRID.size_px and 0 <= row.col < GRID.size_px


@pytest.mark.parametrize('centre', CENTRES)
def test_the_rule_is_the_greedy_rule(centre: tuple[float, float]) -> None:
    """Tiles and members equal those of a naive loop over the photos in hash order."""
    table = cluster(centre, 60, 2, km=1.0)
    found = plan(table, max_photos=1000)
    tiles: list[tuple[int, float, float]] = []
    members: set[tuple[int, int]] = set()
    rank = visiting_order(table['photo_id'].tolist(), 0)

    def inside(tile: tuple[int, float, float], photo: int) -> bool:
        move = Transformer.from_crs(4326, tile[0], always_xy=True)
        x, y = move.transform(table.geometry.iloc[photo].x, table.geometry.iloc[photo].y)
        return bool(GRID.holds(*GRID.row_col(np.array(x), np.array(y), np.array(tile[1]), np.array(tile[2]))))

    from grafalign.geo import project, utm_epsg

    for photo in np.argsort(rank).tolist():
        if not any(inside(tile, photo) for tile in tiles):
            point = table.geometry.iloc[photo]
            epsg = int(utm_epsg(np.array(point.x), np.array(point.y)))
            left, top = GRID.corner(*project(np.array(point.x), np.array(point.y), epsg))
            tiles.append((epsg, float(left), float(top)))
    for number, tile in enumerate(tiles):
        members |= {(number, photo) for photo in range(len(table)) if inside(tile, photo)}
    assert [GRID.tile_id(*t) for t in tiles] == found.tiles['tile_id'].tolist()
    assert members == set(zip(found.pairs['tile'], found.pairs['photo'], strict=True))


@given(st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    """A shuffled table gives the same tiles with the same photos."""
    table = cluster(CENTRES[0], 150, 3)
    other = table.sample(frac=1, random_state=seed).reset_index(drop=True)

    def content(found: Plan, source: gpd.GeoDataFrame) -> set[tuple[str, str]]:
        ids = source['photo_id'].to_numpy()[found.pairs['photo']]
        return set(zip(found.tiles['tile_id'].to_numpy()[found.pairs['tile']], ids, strict=True))

    assert content(plan(table, 5), table) == content(plan(other, 5), other)


def test_at_most_max_photos_are_kept_and_the_rest_is_named() -> None:
    """A crowded tile keeps `max_photos`, and every other photo is listed with a reason."""
    table = cluster(CENTRES[0], 200, 4, km=0.05)
    found = plan(table, max_photos=10)
    assert found.pairs.groupby('tile').size().max() == 10
    assert set(found.dropped['photo']) | set(found.pairs['photo']) == set(range(200))
    assert found.dropped['reason'].str.contains('already has 10').all()


def test_no_tile_touches_two_splits_and_no_photo_is_on_both_sides() -> None:
    """All blocks under a tile have its split, and a photo's tiles agree on it."""
    table = cluster(CENTRES[0], 400, 5, km=6)
    found = plan(table, block_km=1.5, shares=SHARES)
    west, south, east, north = (found.tiles.bounds[c].to_numpy() for c in ('minx', 'miny', 'maxx', 'maxy'))
    names = split_of_blocks(blocks_touched(west, south, east, north, 1.5), SHARES, 0)
    assert (names == found.tiles['split'].to_numpy()[:, None]).all()
    assert set(found.tiles['split']) == {'train', 'val', 'test'}
    sides = (
        found.pairs.assign(split=found.tiles['split'].to_numpy()[found.pairs['tile']])
        .groupby('photo')['split']
        .nunique()
    )
    assert sides.max() == 1
    assert (found.dropped['reason'] == 'tile touches two splits').any()
