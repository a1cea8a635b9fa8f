"""Search regions: they cover every place with its margin, never span the antimeridian, and are few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from grafalign.scenes.regions import Box, regions_of


def covers(boxes: list[Box], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Which places lie in a box, by a plain loop."""
    inside = np.zeros(len(lon), dtype=bool)
    for west, south, east, north in boxes:
        inside |= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return inside


places = st.lists(
    st.tuples(st.floats(-180, 180, allow_subnormal=False), st.floats(-84, 84, allow_subnormal=False)), min_size=1
)


@settings(max_examples=200, deadline=None)
@given(places, st.sampled_from([0.5, 4.0, 7.3, 45.0]), st.sampled_from([0.0, 500.0, 5_000.0]))
def test_every_place_is_covered_with_its_margin(where: list[tuple[float, float]], cell: float, margin: float) -> None:
    """Points all round a place at the margin's distance lie in a region, also across the antimeridian."""
    lon, lat = np.array(where).T
    boxes = regions_of(lon, lat, cell, margin)
    assert covers(boxes, lon, lat).all()
    for azimuth in range(0, 360, 15):
        ring = Geod(ellps='WGS84').fwd(lon, lat, np.full(len(lon), azimuth), np.full(len(lon), margin * 0.98))
        assert covers(boxes, np.asarray(ring[0]), np.asarray(ring[1])).all()
    for west, south, east, north in boxes:
        assert -180 <= west < east <= 180 and -90 <= south < north <= 90


def test_neighbours_are_merged_and_the_far_are_not() -> None:
    """A full row of cells is one box, as is a full square; one box round a diagonal would be mostly empty."""
    fine = np.linspace(0.1, 7.9, 40)
    assert len(regions_of(fine, np.full(40, 1.0), 4.0, 100)) == 1
    lon, lat = np.meshgrid(fine, fine + 2)  # rows of cells begin at the South Pole
    assert len(regions_of(lon.ravel(), lat.ravel(), 4.0, 100)) == 1
    assert len(regions_of([2, 6, 10], [2, 6, 10], 4.0, 100)) == 3


def test_regions_are_tight() -> None:
    """One photo is a region of a fraction of a cell, and more photos beside it leave it as it is."""
    (one,) = regions_of([10.05], [50.05], 4.0, 1000)
    assert (one[2] - one[0]) <= 0.3 and (one[3] - one[1]) <= 0.3
    assert regions_of([10.05, 10.051], [50.05, 50.049], 4.0, 1000) == [one]


def test_both_sides_of_the_antimeridian() -> None:
    """A photo of Taveuni within a kilometre of longitude 180 gives a region on either side."""
    boxes = regions_of([179.999], [-16.8], 4.0, 2000)
    assert len(boxes) == 2 and {b[0] for b in boxes} >= {-180.0} and {b[2] for b in boxes} >= {180.0}


def test_order_and_repetition_of_places_do_not_matter() -> None:
    """The same places give the same regions, so the same kept searches."""
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-60, 70, 500)
    order = rng.permutation(500)
    expected = regions_of(lon, lat, 4.0, 1000)
    assert regions_of(lon[order], lat[order], 4.0, 1000) == expected
    assert regions_of(np.tile(lon, 3), np.tile(lat, 3), 4.0, 1000) == expected
    assert regions_of([], []) == []


@pytest.mark.realdata
def test_real_photos_need_few_regions(realdata: Path) -> None:
    """A hundred thousand real photos from all over the Earth need few searches; ten times as many hardly more."""
    table = pd.read_csv(realdata / 'places' / 'photo_coordinates_100k.csv')
    lon, lat = (table[next(c for c in table if c.lower().startswith(n))].to_numpy() for n in ('lon', 'lat'))
    boxes = regions_of(lon, lat, 4.0, 2240)
    assert covers(boxes, lon, lat).all() and len(boxes) < 700
    area = sum(shapely.box(*b).area for b in boxes)
    assert area < 0.12 * 360 * 180
    rng = np.random.default_rng(0)
    near = rng.normal(0, 0.01, (2, 10, len(lon)))
    many = regions_of(np.clip(lon + near[0], -180, 180).ravel(), np.clip(lat + near[1], -84, 84).ravel(), 4.0, 2240)
    assert len(many) < 1.15 * len(boxes)
