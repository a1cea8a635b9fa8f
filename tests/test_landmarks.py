"""Landmarks are what a map knows and an image can show; captions say nothing that is not on the record."""

from __future__ import annotations

import math
import re
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.captions.landmarks.find import Maps, find_landmarks
from grafalign.captions.landmarks.footprints import footprints
from grafalign.captions.landmarks.kinds import hidden, kind_of, table
from grafalign.captions.landmarks.relate import landmarks_of, position_of
from grafalign.captions.writing.write import write_captions
from grafalign.errors import InputError
from grafalign.geo import project
from grafalign.store import PairStore
from tests.caption_world import picture
from tests.landmark_world import TILE, at, extract, found_in, place_set, rectangle, thing


def test_an_extract_gives_what_is_on_the_image_and_why_the_rest_cannot_be_seen(tmp_path: Path) -> None:
    """Areas, lines, points, a ring with a hole; boundaries and restaurants are no landmarks at all."""
    captions = place_set(tmp_path)
    find_landmarks(captions, Maps(osm=(extract(tmp_path / 'x.osm.pbf'),)), tmp_path / 'landmarks')
    rows = found_in(tmp_path / 'landmarks')
    visible = {row['kind']: row for row in rows if row['visible']}
    kinds = {'beach', 'main road', 'path', 'house', 'water tower', 'conifer forest', 'pedestrian street', 'stadium'}
    assert set(visible) == kinds
    assert visible['beach']['share'] == pytest.approx(0.04, rel=1e-3) and visible['beach']['position'] == 'north-west'
    assert visible['conifer forest']['share'] == pytest.approx(0.03, rel=1e-3)
    assert visible['main road']['share'] == pytest.approx(0.06, rel=1e-2) and visible['main road'][
        'length_m'
    ] == pytest.approx(200, rel=1e-3)
    assert visible['water tower']['share'] == pytest.approx(math.pi * 3**2 / 100**2, rel=0.02)
    assert visible['pedestrian street']['area_m2'] == pytest.approx(20 * 15 * 4, rel=1e-3)
    assert {row['kind']: row['reason'] for row in rows if not row['visible']} == {
        'main road': 'in a tunnel or covered',
        'building': 'too small',
        'parking lot': 'underground or indoors',
    }


def test_what_was_mapped_after_the_scene_is_not_on_it() -> None:
    """A first version of later than the scene; a later version says nothing."""
    younger = thing('a', 'leisure=stadium', rectangle(10, 10, 50, 50), since=date(2022, 1, 1))
    older = thing('b', 'natural=beach', rectangle(60, 60, 90, 90), since=date(2019, 1, 1))
    rows = {r.landmark_id: r for r in landmarks_of(TILE, [younger, older])}
    assert rows['a'].reason == 'younger than the scene' and rows['b'].visible
    assert all(r.visible for r in landmarks_of(TILE, [younger, older], keep_younger=True))


def test_pieces_of_one_object_are_one_landmark() -> None:
    """Cut at tile borders by whoever made the map, they are put together by their id."""
    parts = [thing('a', 'natural=beach', rectangle(left, 10, left + 10, 30)) for left in (10, 20, 25)]
    (row,) = landmarks_of(TILE, parts)
    assert row.share == pytest.approx(25 * 20 / 100**2, rel=1e-3)


@given(st.floats(-50, 140), st.floats(-50, 140), st.floats(5, 120), st.floats(5, 120))
def test_the_share_of_a_rectangle_is_that_of_its_part_inside(
    left: float, top: float, width: float, height: float
) -> None:
    """As plain arithmetic says, wherever it lies."""
    inside = max(0, min(100, left + width) - max(0, left)) * max(0, min(100, top + height) - max(0, top))
    rows = landmarks_of(TILE, [thing('a', 'natural=beach', rectangle(left, top, left + width, top + height))])
    share = sum(row.share for row in rows)
    assert share == pytest.approx(inside / 100**2, abs=2e-4)
    assert all(row.visible == (inside >= 16) or abs(inside - 16) < 1 for row in rows)


@pytest.mark.parametrize(
    ('first', 'second', 'relation'),
    [
        ((10, 10, 20, 20), (22, 10, 60, 60), 'next to'),
        ((30, 30, 40, 40), (20, 20, 60, 60), 'inside'),
        ((10, 10, 20, 20), (60, 60, 99, 99), 'north-west'),
        ((80, 10, 90, 20), (10, 10, 50, 50), 'east'),
    ],
)
def test_relations_are_to_the_largest_other(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float], relation: str
) -> None:
    """North is up."""
    rows = landmarks_of(
        TILE, [thing('a', 'natural=beach', rectangle(*first)), thing('b', 'leisure=park', rectangle(*second))]
    )
    row = next(r for r in rows if r.landmark_id == 'a')
    assert (row.relation, row.related_to) == (relation, 'b')


def test_a_footprint_and_its_pixels_are_each_others_inverse() -> None:
    """A place in pixels goes to degrees and back."""
    found = TILE.to_pixels(shapely.Point(at(12.5, 70.25)))
    assert (found.x, found.y) == (pytest.approx(12.5, abs=1e-4), pytest.approx(70.25, abs=1e-4))
    west, south, east, north = TILE.bounds()
    x, y = project(np.array([west, east]), np.array([south, north]), TILE.epsg)
    assert x == pytest.approx([TILE.left, TILE.left + 200], abs=1) and y == pytest.approx(
        [TILE.top - 200, TILE.top], abs=1
    )


def test_tiles_of_a_store_lie_where_the_store_says(store: PairStore, tmp_path: Path) -> None:
    """Their corners are those of the tiles' geometries."""
    import_captions(Path(str(store.path)), tmp_path / 'set')
    for place in footprints(CaptionSet(tmp_path / 'set'))[:5]:
        tile = store.tiles.iloc[place.row]
        assert shapely.box(*place.bounds()).intersection(tile.geometry).area > 0.95 * tile.geometry.area
        assert place.taken == tile['datetime'].date() and place.image_id == tile['tile_id']


def test_every_kind_has_a_word_and_is_found_by_its_tag() -> None:
    """The table is whole: 150 kinds, each with its key."""
    kinds = [kind for values in table().values() for kind in values.values()]
    assert len(kinds) >= 150
    for values in table().values():
        for kind in values.values():
            key, _, value = kind.key.partition('=')
            assert kind_of({key: value}) is not None and re.fullmatch(r"[A-Za-z' -]+", kind.name)


@pytest.mark.parametrize(
    'tags',
    [
        {'tunnel': 'yes'},
        {'layer': '-1'},
        {'location': 'underground'},
        {'indoor': 'room'},
        {'demolished': 'yes'},
        {'razed:building': 'yes'},
        {'proposed': 'motorway'},
        {'covered': 'yes'},
        {'parking': 'underground'},
    ],
)
def test_what_is_hidden_says_why(tags: dict[str, str]) -> None:
    """Below, inside, gone or to come."""
    assert hidden({'building': 'yes', **tags}) is not None and hidden({'building': 'yes', 'layer': 'x'}) is None


def test_sets_without_places_and_landmarks_of_others_are_refused(tmp_path: Path) -> None:
    """One sentence each."""
    (tmp_path / 'a.png').write_bytes(picture(0))
    (tmp_path / 't.jsonl').write_text('{"image": "a.png", "caption": "a lake"}')
    import_captions(tmp_path / 't.jsonl', tmp_path / 'plain')
    (tmp_path / 'o.geojson').write_text(
        gpd.GeoDataFrame({'kind': ['barn']}, geometry=[rectangle(0, 0, 9, 9)], crs=4326).to_json()
    )
    with pytest.raises(InputError, match='says where it lies'):
        find_landmarks(CaptionSet(tmp_path / 'plain'), Maps(own=(tmp_path / 'o.geojson',)), tmp_path / 'x')
    with pytest.raises(InputError, match='give --osm'):
        find_landmarks(CaptionSet(tmp_path / 'plain'), Maps(), tmp_path / 'x')
    (tmp_path / 'other').mkdir()
    captions = place_set(tmp_path / 'other')
    find_landmarks(captions, Maps(own=(tmp_path / 'o.geojson',)), tmp_path / 'landmarks')
    with pytest.raises(InputError, match='of another set'):
        write_captions(CaptionSet(tmp_path / 'plain'), tmp_path / 'landmarks', tmp_path / 'y')


def test_places_of_nine() -> None:
    """Thirds across and down."""
    assert [position_of(x, y) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)] == [
        'north-west', 'north', 'north-east', 'west', 'centre', 'east', 'south-west', 'south', 'south-east',
    ]  # fmt: skip
