"""Items in stac-geoparquet: what is written comes back, also where Arrow has no type for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

from grafalign.scenes.items import SceneSource, load_scenes
from grafalign.scenes.radiometry import band_sources
from grafalign.scenes.scene import scene_of
from grafalign.scenes.table import items_to_parquet, read_items

Item = dict[str, Any]
TIMES = ('datetime', 'start_datetime', 'end_datetime', 'created', 'updated')


def round_trip(items: list[Item], folder: Path) -> list[Item]:
    """Write items and read them."""
    path = folder / 'items.parquet'
    path.write_bytes(items_to_parquet(items))
    return list(read_items(path))


def said(value: Any) -> Any:
    """What a value says: nulls say nothing."""
    if isinstance(value, dict):
        return {k: said(v) for k, v in value.items() if v is not None}
    return [said(v) for v in value] if isinstance(value, list | tuple) else value


def assert_alike(before: Item, after: Item) -> None:
    """Equal in all that is said; times as moments, outlines as shapes."""
    before, after = json.loads(json.dumps(said(before))), json.loads(json.dumps(said(after)))
    old, new = before.pop('properties'), after.pop('properties')
    for key in TIMES:
        if isinstance(old.get(key), str) and old[key][:2] == '20':
            assert pd.Timestamp(old.pop(key)) == pd.Timestamp(new.pop(key))
    assert new == old
    outlines = [shapely.geometry.shape(i.pop('geometry')) for i in (before, after)]
    assert outlines[0].equals(outlines[1])
    assert after.pop('bbox') == before.pop('bbox', list(outlines[0].bounds))
    for optional in ('links', 'stac_extensions'):
        before.setdefault(optional, [])
    assert after == before


@pytest.mark.realdata
@pytest.mark.parametrize('together', [False, True], ids=['one by one', 'in one table'])
def test_all_real_items_come_back(realdata: Path, tmp_path: Path, together: bool) -> None:
    """Every key of every item of Planetary Computer and Earth Search, in a table each and in one for all."""
    files = sorted((realdata / 'stac').glob('*.items.ndjson'))
    groups = [[json.loads(line) for line in f.read_text().splitlines()] for f in files]
    if together:
        groups = [[item for group in groups for item in group]]
    for items in groups:
        back = round_trip(items, tmp_path)
        assert len(back) == len(items)
        for before, after in zip(items, back, strict=True):
            assert_alike(before, after)
            bands = {'naip': ['red', 'nir']}.get(
                before['collection'], [k for k in ('B04', 'red') if k in before['assets']]
            )
            assert band_sources(after, bands, 10) == band_sources(before, bands, 10)
            one, other = scene_of(before), scene_of(after)
            assert (one.when, one.cloud_percent, one.baseline) == (other.when, other.cloud_percent, other.baseline)


def item(name: str, properties: Item | None = None, assets: Item | None = None, **changes: Any) -> Item:
    """A small item."""
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'stac_extensions': [],
        'id': name,
        'collection': 'c',
        'geometry': shapely.geometry.mapping(shapely.box(0, 0, 1, 1)),
        'bbox': [0.0, 0.0, 1.0, 1.0],
        'properties': {'datetime': '2021-01-01T00:00:00Z', **(properties or {})},
        'links': [],
        'assets': {'red': {'href': '/a.tif'}} if assets is None else assets,
        **changes,
    }


AWKWARD = {
    'a number here, a text there': [item('a', {'x': 1}), item('b', {'x': 'one'}), item('c', {'x': [1]}), item('d')],
    'a list of mixed things': [item('a', {'x': [1, 'b', None, {'c': 2}]}), item('b', {'x': [[1], 2]})],
    'true here, 1 there': [item('a', {'x': True}), item('b', {'x': 1})],
    'empty objects and lists': [item('a', {'x': {}, 'y': [], 'z': [{}]}), item('b', {'x': {}})],
    'whole numbers and fractions': [item('a', {'x': 1}), item('b', {'x': 0.5})],
    'very large numbers': [item('a', {'x': 2**70}), item('b', {'x': 2**53 + 1})],
    'nulls': [item('a', {'x': None, 'proj:geometry': None}), item('b', {'x': {'y': None}, 'eo:cloud_cover': 3})],
    'a property named like a member': [item('a', {'type': 'x', 'id': 7, 'collection': 'y', 'links': [1]}), item('b')],
    'times that are none': [item('a', {'created': 'long ago', 'updated': 5}), item('b', {'created': '2021-01-01'})],
    'fractions of seconds': [item('a', {'created': '2021-01-01T00:00:00.123456Z'}), item('b')],
    'a span instead of a time': [
        item('a', {'datetime': None, 'start_datetime': '2021-01-01T00:00:00Z', 'end_datetime': '2021-01-03T00:00:00Z'})
    ],
    'assets that differ': [
        item('a', assets={'red': {'href': 'r', 'raster:bands': [{'scale': 1}]}, 'x': {'href': 'h', 'gsd': 'fine'}}),
        item(
            'b',
            assets={
                'nir': {'href': 'n', 'raster:bands': [{'offset': -0.1}, {}], 'gsd': 10},
                'x': {'href': 'h', 'gsd': 10},
            },
        ),
    ],
    'no assets at all': [item('a', assets={}), item('b')],
    'outlines of a projection': [
        item('a', {'proj:geometry': shapely.geometry.mapping(shapely.box(0, 0, 9, 9))}),
        item('b', {'proj:geometry': shapely.geometry.mapping(shapely.MultiPolygon([shapely.box(0, 0, 9, 9)]))}),
    ],
    'names with everything in them': [item('a/ä "b"', {'x.y:z[]': 'ü\n', '[]': [{'[]': 1}]}, {'a b.c': {'href': 'x'}})],
    'many names of assets': [
        item(f'i{n}', assets={f'file_{n}_{k}': {'href': f'{k}'} for k in range(9)}) for n in range(60)
    ],
}


@pytest.mark.parametrize('items', AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_items_come_back(items: list[Item], tmp_path: Path) -> None:
    """What stac-geoparquet cannot type by itself is neither lost nor an error, and others can read the table."""
    back = round_trip(items, tmp_path)
    for before, after in zip(items, back, strict=True):
        assert_alike(before, after)
    assert pq.read_table(tmp_path / 'items.parquet').num_rows == len(items)


def test_bbox_of_three_dimensions_or_none(tmp_path: Path) -> None:
    """A bbox with heights loses them; one that is null or missing follows from the outline."""
    items = [item('a', bbox=[0.0, 0.0, 5.0, 1.0, 1.0, 9.0]), item('b', bbox=None), item('c')]
    del items[2]['bbox']
    assert [i['bbox'] for i in round_trip(items, tmp_path)] == [[0.0, 0.0, 1.0, 1.0]] * 3


def test_no_items_are_a_table_too(tmp_path: Path) -> None:
    """An empty search is kept like any other."""
    assert round_trip([], tmp_path) == []


def test_only_what_is_near_is_read(tmp_path: Path) -> None:
    """With outlines to compare, other items are left out by their bbox; a bbox over the antimeridian always comes."""
    far = item('far', bbox=[50.0, 50.0, 51.0, 51.0], geometry=shapely.geometry.mapping(shapely.box(50, 50, 51, 51)))
    over = item('over', bbox=[179.0, 50.0, -179.0, 51.0])
    (tmp_path / 'a.parquet').write_bytes(items_to_parquet([item('near'), far, over]))
    near = shapely.STRtree([shapely.box(0.5, 0.5, 2, 2)])
    assert [i['id'] for i in read_items(tmp_path / 'a.parquet', near)] == ['near', 'over']


@pytest.mark.realdata
def test_tables_from_elsewhere_are_read(realdata: Path, tmp_path: Path) -> None:
    """A table that stac-geoparquet itself wrote gives the scenes of the items it was made from."""
    from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

    source = realdata / 'stac' / 'planetarycomputer.microsoft.com__sentinel-2-l2a.items.ndjson'
    items = [json.loads(line) for line in source.read_text().splitlines()]
    to_parquet(parse_stac_items_to_arrow(items), tmp_path / 'theirs.parquet')
    world = (-180.0, -90.0, 180.0, 90.0)
    ours, theirs = (load_scenes(SceneSource(items=p), world) for p in (source, tmp_path / 'theirs.parquet'))
    assert len(ours) == 62 == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.item_id, one.when, one.cloud_percent, one.baseline) == (
            other.item_id,
            other.when,
            other.cloud_percent,
            other.baseline,
        )
        assert band_sources(one.item, ['B04', 'B08'], 10) == band_sources(other.item, ['B04', 'B08'], 10)
