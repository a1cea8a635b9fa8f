"""Tile geometry over the whole globe."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info

from grafalign import geo
from grafalign.geo import TileGrid, blocks_touched, project, unit_metres, unproject, utm_epsg

LON = st.floats(-180, 179.999, allow_nan=False)
LAT = st.floats(-79.5, 83.5, allow_nan=False)
GRIDS = st.sampled_from([TileGrid(224, 1), TileGrid(224, 10), TileGrid(64, 5), TileGrid(96, 0.6)])


@given(LON, LAT)
@settings(max_examples=60)
def test_the_zone_is_one_that_pyproj_offers(lon: float, lat: float) -> None:
    """The UTM zone of a place is among those whose area of use holds it."""
    found = query_utm_crs_info('WGS 84', AreaOfInterest(lon, lat, lon, lat))
    regular = (lat < 56 or lat >= 64 or not 0 <= lon < 12) and (lat < 72 or not 0 <= lon < 42)
    on_border = abs(lat) < 1e-6 or abs(lon / 6 - round(lon / 6)) < 1e-6  # either neighbour is right
    if regular and not on_border:
        assert int(utm_epsg(np.array(lon), np.array(lat))) in {int(c.code) for c in found}


@pytest.mark.parametrize(
    ('lon', 'lat', 'zone'),
    [
        (5.3, 60.4, 32632),
        (2.9, 60.4, 32631),
        (15.6, 78.2, 32633),
        (8.9, 78.2, 32631),
        (25, 78, 32635),
        (34, 78, 32637),
        (-180, 10, 32601),
        (179.99, -10, 32760),
    ],
)
def test_zones_with_exceptions(lon: float, lat: float, zone: int) -> None:
    """Bergen lies in zone 32, Svalbard in the odd zones, the antimeridian begins zone 1."""
    assert int(utm_epsg(np.array(lon), np.array(lat))) == zone


@given(LON, LAT, GRIDS)
@settings(max_examples=80)
def test_a_place_falls_in_the_middle_of_its_tile(lon: float, lat: float, grid: TileGrid) -> None:
    """The tile centred on a place holds it within one pixel of its centre, and its origin is a multiple of the GSD."""
    epsg = int(utm_epsg(np.array(lon), np.array(lat)))
    x, y = project(np.array([lon]), np.array([lat]), epsg)
    left, top = grid.corner(x, y)
    row, col = grid.row_col(x, y, left, top)
    assert abs(row[0] - grid.size_px / 2) <= 1 and abs(col[0] - grid.size_px / 2) <= 1
    assert abs(left[0] / grid.gsd_m - round(left[0] / grid.gsd_m)) < 1e-6


@given(LON, LAT)
@settings(max_examples=60)
def test_projection_round_trips(lon: float, lat: float) -> None:
    """Degrees to metres and back is the identity to a millimetre."""
    epsg = int(utm_epsg(np.array(lon), np.array(lat)))
    back_lon, back_lat = unproject(*project(np.array([lon]), np.array([lat]), epsg), epsg)
    gap = (back_lon[0] - lon + 180) % 360 - 180
    assert abs(gap) < 1e-7 and abs(back_lat[0] - lat) < 1e-8


def test_geobox_agrees_with_row_col() -> None:
    """A pixel's place by the GeoBox's own transform has that row and column."""
    grid = TileGrid(64, 5)
    box = grid.geobox(32625, 500_000.0, 4_990_000.0)
    x, y = box.affine @ (12.25, 40.5)
    row, col = grid.row_col(np.array(x), np.array(y), np.array(500_000.0), np.array(4_990_000.0))
    assert (float(row), float(col)) == (40.5, 12.25)


@given(LON, LAT, st.floats(1, 50), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100)
def test_every_point_of_a_box_lies_in_a_block_it_touches(lon: float, lat: float, km: float, u: float, v: float) -> None:
    """The blocks of a box include the block of any point in it."""
    height = 0.6 * km / 111.32
    width = height / np.cos(np.deg2rad(abs(lat) + height))
    box = [np.array([n]) for n in (lon, lat, lon + width, lat + height)]
    touched = set(blocks_touched(*box, block_km=km)[0].tolist())
    x, y = np.array([lon + u * width]), np.array([lat + v * height])
    assert set(blocks_touched(x, y, x, y, block_km=km)[0].tolist()) <= touched


def test_neighbouring_zones_share_their_blocks() -> None:
    """A place on a zone border is in the same block whichever zone's tile it is in."""
    grid = TileGrid(64, 5)
    lon, lat = np.array([-30.0]), np.array([45.0])
    west, east = (grid.bounds_lonlat(e, *grid.corner(*project(lon, lat, e))) for e in (32625, 32626))
    assert set(blocks_touched(*west, block_km=5)[0]) == set(blocks_touched(*east, block_km=5)[0])


def test_bounds_hold_all_corners() -> None:
    """The box in degrees of a tile contains its corners."""
    grid = TileGrid(224, 10)
    left, top = np.array([700_000.0]), np.array([7_900_000.0])
    west, south, east, north = grid.bounds_lonlat(32633, left, top)
    move = Transformer.from_crs(CRS.from_epsg(32633), 4326, always_xy=True)
    for dx in (0, grid.side_m):
        for dy in (0, grid.side_m):
            lon, lat = move.transform(left[0] + dx, top[0] - dy)
            assert west[0] <= lon <= east[0] + 1e-9 and south[0] - 1e-9 <= lat <= north[0] + 1e-9


@pytest.mark.parametrize(
    ('code', 'lon', 'lat', 'expected'),
    [
        (3857, 5.0, 52.0, math.cos(math.radians(52))),  # of a sphere; the ellipsoid's is within 0.4 %
        (3857, 5.0, 0.0, 1.0),
        (3857, -70.0, -60.0, 0.5),
        (32631, 5.0, 52.0, 1.0),
        (2263, -74.0, 40.7, 0.3048006),  # New York's feet
        (4326, 5.0, 52.0, 111_320.0),
    ],
)
def test_units_are_measured_on_the_ground(code: int, lon: float, lat: float, expected: float) -> None:
    """Web Mercator's shrink towards the poles, feet are feet, a degree is one along a meridian."""
    x, y = Transformer.from_crs('EPSG:4326', code, always_xy=True).transform(lon, lat)
    assert unit_metres(CRS.from_epsg(code).to_wkt(), x, y) == pytest.approx(expected, rel=0.005)


@given(st.lists(st.tuples(LON, LAT), max_size=5), st.one_of(GRIDS, st.just(TileGrid(64, 30, (15, 15)))))
@settings(max_examples=60)
def test_names_of_many_tiles_are_those_of_each(places: list[tuple[float, float]], grid: TileGrid) -> None:
    """However many are named together, and whether corners are whole metres or not."""
    lon, lat = np.array(places).reshape(-1, 2).T
    epsg = utm_epsg(lon, lat)
    at = [project(x, y, int(zone)) for x, y, zone in zip(lon, lat, epsg, strict=True)]
    left, top = grid.corner(*np.array(at, dtype=float).reshape(-1, 2).T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geo, '_NAMED_TOGETHER', 2)
        names = grid.tile_ids(epsg, left, top)
    assert names.dtype == 'str'
    assert names.tolist() == [grid.tile_id(*tile) for tile in zip(epsg.tolist(), left, top, strict=True)]
