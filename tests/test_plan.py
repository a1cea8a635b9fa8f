"""The planner keeps GRAFT's greedy rule, whatever the order of the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from grafalign.geo import TileGrid, blocks_touched, project, unproject, utm_epsg
from grafalign.pairing import members, seeds
from grafalign.pairing.plan import Plan, ahead, make_plan
from grafalign.pairing.splits import split_of_blocks
from grafalign.photos.ranks import ranks

GRID = TileGrid(64, 5)
SHARES = {'train': 0.6, 'val': 0.2, 'test': 0.2}
CENTRES = [(-30.0, 45.0), (3.0, 60.0), (179.999, 12.0), (-179.999, -33.0), (20.9, 78.0), (15.0, 0.0)]


def photos(lon: np.ndarray, lat: np.ndarray) -> pd.DataFrame:
    """A photo table at the given places."""
    ids = [f'p{i:05d}' for i in range(len(lon))]
    return pd.DataFrame({'photo_id': ids, 'lon': lon, 'lat': lat})


def cluster(centre: tuple[float, float], count: int, seed: int, km: float = 2.0) -> pd.DataFrame:
    """Photos around a place."""
    rng = np.random.default_rng(seed)
    lat = centre[1] + rng.normal(0, km / 111, count)
    lon = centre[0] + rng.normal(0, km / 111 / np.cos(np.deg2rad(centre[1])), count)
    return photos((lon + 180) % 360 - 180, lat)


def plan(
    table: pd.DataFrame, max_photos: int = 25, block_km: float = 50, shares: dict[str, float] | None = None
) -> Plan:
    """The plan of a table on the test grid."""
    lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
    return make_plan(table['photo_id'], lon, lat, GRID, max_photos, 0, block_km, shares or {'train': 1.0})


@pytest.mark.parametrize('centre', CENTRES)
def test_every_photo_is_in_a_tile_that_holds_it(centre: tuple[float, float]) -> None:
    """Without splits and caps every photo is paired, and its row and column, recomputed alone, fall inside its tile."""
    table = cluster(centre, 120, 1)
    found = plan(table, max_photos=1000)
    assert set(found.pairs['photo']) == set(range(len(table)))
    for row in found.pairs.sample(40, random_state=0).itertuples():
        tile = found.tiles.iloc[row.tile]
        point = table.iloc[row.photo]
        x, y = Transformer.from_crs(4326, int(tile['epsg']), always_xy=True).transform(point['lon'], point['lat'])
        assert row.col == pytest.approx((x - tile['left']) / GRID.gsd_m, abs=1e-6)
        assert row.row == pytest.approx((tile['top'] - y) / GRID.gsd_m, abs=1e-6)
        assert 0 <= row.row < GRID.size_px and 0 <= row.col < GRID.size_px


def naive(
    table: pd.DataFrame, grid: TileGrid, core: float = 1.0, reach: float = 1.0
) -> tuple[list[str], set[tuple[int, int]]]:
    """Tile ids and (tile, photo) members by a plain loop over the photos in hash order; no cap and no split."""
    lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
    tiles: list[tuple[int, float, float]] = []

    def inside(tile: tuple[int, float, float], part: float) -> np.ndarray:
        row, col = grid.row_col(*project(lon, lat, tile[0]), np.array(tile[1]), np.array(tile[2]))
        low, high = grid.size_px / 2 * (1 - part), grid.size_px / 2 * (1 + part)
        return (row >= low) & (row < high) & (col >= low) & (col < high)

    held = np.zeros(len(table), dtype=bool)
    for photo in np.argsort(ranks(table['photo_id'].tolist(), 0)).tolist():
        if not held[photo]:
            epsg = int(utm_epsg(lon[photo], lat[photo]))
            left, top = grid.corner(*project(lon[photo], lat[photo], epsg))
            tiles.append((epsg, float(left), float(top)))
            held |= inside(tiles[-1], core)
    members = {(n, int(photo)) for n, tile in enumerate(tiles) for photo in np.flatnonzero(inside(tile, reach))}
    return [grid.tile_id(*t) for t in tiles], members


@pytest.mark.parametrize('centre', CENTRES)
def test_the_rule_is_the_greedy_rule(centre: tuple[float, float]) -> None:
    """Tiles and members equal those of a naive loop over the photos in hash order."""
    table = cluster(centre, 60, 2, km=1.0)
    found = plan(table, max_photos=1000)
    ids, in_tiles = naive(table, GRID)
    assert ids == found.tiles['tile_id'].tolist()
    assert in_tiles == set(zip(found.pairs['tile'], found.pairs['photo'], strict=True))


EDGES_LON = [*range(-180, 181, 6), 3, 9, 12, 21, 33, 42]
"""Borders of zones, those of Norway and Svalbard among them, and the antimeridian."""
EDGES_LAT = [-80, -79.9999, -56, -0.0001, 0, 0.0001, 45, 56, 64, 72, 83.99, 84]
"""The limits of UTM, the equator, and the rows where the exceptions begin and end."""


@st.composite
def places(draw: st.DrawFn) -> tuple[TileGrid, pd.DataFrame]:
    """A grid, and photos about a place anywhere or on a border, some of them on the edges of each other's tiles."""
    grid = draw(st.sampled_from([GRID, TileGrid(224, 1), TileGrid(224, 10), TileGrid(33, 0.6)]))
    lon = draw(st.one_of(st.sampled_from(EDGES_LON), st.floats(-180, 180)))
    lat = draw(st.one_of(st.sampled_from(EDGES_LAT), st.floats(-80, 84)))
    half = grid.side_m / 2
    steps = st.one_of(
        st.sampled_from([0.0, half, -half, half / 2, half / 4, 2 * half, grid.gsd_m]), st.floats(-3 * half, 3 * half)
    )
    offsets = np.array(draw(st.lists(st.tuples(steps, steps), min_size=2, max_size=16)))
    epsg = int(utm_epsg(np.array(float(lon)), np.array(float(lat))))
    x, y = project(np.array(float(lon)), np.array(float(lat)), epsg)
    left, top = grid.corner(x, y)
    lons, lats = unproject(left + half + offsets[:, 0], top - half + offsets[:, 1], epsg)
    kept = (lats <= 84) & (lats >= -80)
    return grid, photos(np.append(lons[kept], float(lon)), np.append(lats[kept], float(lat)))


@given(
    places(),
    st.sampled_from([(1.0, 1.0), (0.5, 0.5), (0.5, 1.0), (0.25, 0.4)]),
    st.sampled_from([1000, 2]),
    st.sampled_from([(4096, 131_072), (1, 100), (3, 5), (1, 1)]),
)
@settings(max_examples=400, deadline=None)
def test_the_rule_holds_all_over_the_globe(
    drawn: tuple[TileGrid, pd.DataFrame], parts: tuple[float, float], most: int, portions: tuple[int, int]
) -> None:
    """At every kind of border, with photos on the edges of tiles or cores, it is the naive loop's, and none is lost.

    However many photos are looked at together, and however many a tile keeps.
    """
    grid, table = drawn
    lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, '_FIRST_TOGETHER', portions[0])
        patch.setattr(seeds, '_VISITED_TOGETHER', portions[1])
        patch.setattr(members, '_TOGETHER', portions[1])
        found = make_plan(table['photo_id'], lon, lat, grid, most, 0, 5000, {'train': 1.0}, 0, *parts)
    ids, in_tiles = naive(table, grid, *parts)
    assert found.tiles['tile_id'].tolist() == ids and len(set(ids)) == len(ids)
    rank = ranks(table['photo_id'].tolist(), 0)
    kept = [
        (tile, photo)
        for tile in range(len(ids))
        for photo in sorted((p for t, p in in_tiles if t == tile), key=rank.__getitem__)[:most]
    ]
    assert list(zip(found.pairs['tile'], found.pairs['photo'], strict=True)) == kept
    assert set(found.pairs['photo']) | set(found.dropped['photo']) == set(range(len(table)))
    assert len(found.dropped) == len(table) - found.pairs['photo'].nunique()
    assert (found.dropped['reason'] == f'tile already has {most} photos').all()


@given(places(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_photos_count_before_their_cameras(drawn: tuple[TileGrid, pd.DataFrame], seed: int) -> None:
    """Tiles and members are those of the places that are viewed; rows and columns are the cameras', inside the tile."""
    grid, table = drawn
    lon, lat = table['lon'].to_numpy(), table['lat'].to_numpy()
    rng = np.random.default_rng(seed)
    heading = np.where(rng.random(len(lon)) < 0.7, rng.uniform(0, 360, len(lon)), np.nan)
    metres = grid.side_m / 8
    viewed = ahead(lon, lat, heading, metres)
    _, _, far = Geod(ellps='WGS84').inv(lon, lat, *viewed)
    moved = np.isfinite(heading) & (np.abs(lat) < 79)
    np.testing.assert_allclose(far[moved], metres, rtol=1e-6)
    np.testing.assert_allclose(far[np.isnan(heading)], 0, atol=1e-6)
    how = (grid, 1000, 0, 5000, {'train': 1.0}, 0, 0.25, 0.5)
    found, there = make_plan(table['photo_id'], lon, lat, *how, viewed), make_plan(table['photo_id'], *viewed, *how)
    pd.testing.assert_frame_equal(found.tiles, there.tiles)
    pd.testing.assert_frame_equal(found.pairs[['tile', 'photo']], there.pairs[['tile', 'photo']])
    assert found.pairs[['row', 'col']].ge(0).all(None) and found.pairs[['row', 'col']].lt(grid.size_px).all(None)
    for row in found.pairs.itertuples():
        tile = found.tiles.iloc[row.tile]
        x, y = project(lon[row.photo], lat[row.photo], int(tile['epsg']))
        assert row.col == pytest.approx((x - tile['left']) / grid.gsd_m, abs=1e-6)
        assert row.row == pytest.approx((tile['top'] - y) / grid.gsd_m, abs=1e-6)


@given(places())
@settings(max_examples=200, deadline=None)
def test_the_quick_box_holds_the_tile(drawn: tuple[TileGrid, pd.DataFrame]) -> None:
    """`box_around`, which spares most tiles the exact outline, contains that outline everywhere."""
    grid, table = drawn
    lon, lat = table['lon'].to_numpy()[:1], table['lat'].to_numpy()[:1]
    epsg = int(utm_epsg(lon, lat)[0])
    left, top = grid.corner(*project(lon, lat, epsg))
    exact, quick = (np.array(f(epsg, left, top))[:, 0] for f in (grid.bounds_lonlat, grid.box_around))
    turn = 360 * np.round((exact[0] - quick[0]) / 360)  # one may count the degrees around the other way
    assert (quick[[0, 2]] + turn - exact[[0, 2]] <= [1e-9, np.inf]).all()
    assert (quick[[0, 2]] + turn - exact[[0, 2]] >= [-np.inf, -1e-9]).all()
    assert quick[1] <= exact[1] and quick[3] >= exact[3]


@given(st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    """A shuffled table gives the same tiles with the same photos."""
    table = cluster(CENTRES[0], 150, 3)
    other = table.sample(frac=1, random_state=seed).reset_index(drop=True)

    def content(found: Plan, source: pd.DataFrame) -> set[tuple[str, str]]:
        ids = source['photo_id'].to_numpy()[found.pairs['photo']]
        return set(zip(found.tiles['tile_id'].to_numpy()[found.pairs['tile']], ids, strict=True))

    assert content(plan(table, 5), table) == content(plan(other, 5), other)


def test_which_photos_a_crowded_tile_keeps_does_not_depend_on_their_order() -> None:
    """Of ten photos in one tile that may hold two, the same two are kept in every order of the rows."""
    table = cluster(CENTRES[1], 10, 7, km=0.01)
    kept = set()
    for seed in range(12):
        other = table.sample(frac=1, random_state=seed).reset_index(drop=True)
        found = plan(other, max_photos=2)
        assert len(found.tiles) == 1
        kept.add(frozenset(other['photo_id'].to_numpy()[found.pairs['photo']]))
    assert len(kept) == 1 and len(next(iter(kept))) == 2


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
    west, south, east, north = shapely.bounds(
        GRID.polygons(*(found.tiles[c].to_numpy() for c in ('epsg', 'left', 'top')))
    ).T
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
