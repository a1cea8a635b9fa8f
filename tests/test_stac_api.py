"""A real STAC API (stac-fastapi, pgstac, PostgreSQL) with real items: the bulk search finds what a plain loop finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely
from shapely.geometry import shape

from grafalign.errors import GrafalignError
from grafalign.scenes.items import FoundScenes, load_scenes
from grafalign.scenes.radiometry import band_sources
from grafalign.scenes.regions import regions_of
from grafalign.scenes.source import SceneSource
from tests.stac_api.server import missing, renamed, stac_api

pytestmark = pytest.mark.realdata
Item = dict[str, Any]
WORLD = (-180.0, -90.0, 180.0, 90.0)
VERMONT = (-73.5, 42.7, -71.4, 45.1)
COLLECTIONS = ['naip', 'sentinel-2-l2a', 'earth-search-s2']


@pytest.fixture(scope='module')
def items(realdata: Path) -> list[Item]:
    """The real items of NAIP and of Sentinel-2 from two publishers."""
    stac = realdata / 'stac'

    def lines(name: str) -> list[Item]:
        return [json.loads(line) for line in (stac / f'{name}.items.ndjson').read_text().splitlines()]

    earth_search = renamed(lines('earth-search.aws.element84.com__sentinel-2-l2a'), 'earth-search-s2')
    return [
        *lines('planetarycomputer.microsoft.com__naip'),
        *lines('planetarycomputer.microsoft.com__sentinel-2-l2a'),
        *earth_search,
    ]


@pytest.fixture(scope='module')
def api(realdata: Path, items: list[Item]) -> Iterator[str]:
    """The API's address."""
    if (reason := missing()) is not None:
        pytest.skip(reason)

    def collection(publisher: str, name: str) -> Item:
        found = json.loads((realdata / 'stac' / f'{publisher}.collections.json').read_text())['collections']
        return dict(next(c for c in found if c['id'] == name))

    theirs = [collection('planetarycomputer.microsoft.com', n) for n in ('naip', 'sentinel-2-l2a')]
    other = {**collection('earth-search.aws.element84.com', 'sentinel-2-l2a'), 'id': 'earth-search-s2'}
    with stac_api([*theirs, other], items) as root:
        yield root


def source(api: str, tmp_path: Path, **changes: Any) -> SceneSource:
    """The `scenes:` part of a recipe for the API."""
    return SceneSource.model_validate({'api': api, 'collections': COLLECTIONS, 'cache': tmp_path / 'cache', **changes})


def keys(found: FoundScenes) -> list[tuple[str, str]]:
    """Collection and id of all scenes, in order."""
    return sorted((s.collection, s.item_id) for s in found)


def naive(
    items: list[Item],
    boxes: list[tuple[float, ...]],
    collections: list[str] = COLLECTIONS,
    period: tuple[date, date] | None = None,
    cloud: float | None = None,
    keep: Any = lambda properties: True,
) -> list[tuple[str, str]]:
    """The same by a plain loop over the file."""
    found = []
    for item in items:
        properties = item['properties']
        day = datetime.fromisoformat(properties['datetime'].replace('Z', '+00:00')).date()
        if (
            item['collection'] in collections
            and any(shape(item['geometry']).intersects(shapely.box(*box)) for box in boxes)
            and (period is None or period[0] <= day <= period[1])
            and (cloud is None or properties.get('eo:cloud_cover', 0) <= cloud)
            and keep(properties)
        ):
            found.append((item['collection'], item['id']))
    return sorted(found)


def test_everything_is_found_page_by_page(api: str, items: list[Item], tmp_path: Path) -> None:
    """All 511 items of three collections in 13 pages of 40, none twice; the landing page is read twice."""
    found = load_scenes(source(api, tmp_path, page_items=40), WORLD)
    assert keys(found) == naive(items, [WORLD]) and len(found) == 511
    assert found.counts['pages'] == 13 and found.counts['requests'] == 15 and 'duplicates' not in found.counts


@pytest.mark.parametrize('collections', [['naip'], ['sentinel-2-l2a', 'earth-search-s2']])
def test_a_region_of_some_collections(api: str, items: list[Item], tmp_path: Path, collections: list[str]) -> None:
    """What touches several boxes, and nothing else."""
    boxes = [VERMONT, (-60.0, -61.0, 0.0, 10.0), (100.0, 0.0, 150.0, 60.0)]
    expected = naive(items, boxes, collections)
    assert expected and keys(load_scenes(source(api, tmp_path, collections=collections), boxes)) == expected


def test_regions_of_photos_find_what_touches_the_photos(api: str, items: list[Item], tmp_path: Path) -> None:
    """Regions made from places find every item that touches a place, with far fewer requests than places."""
    outlines = [shape(i['geometry']).representative_point() for i in items if i['collection'] == 'naip']
    lon, lat = [p.x for p in outlines], [p.y for p in outlines]
    found = load_scenes(source(api, tmp_path), regions_of(lon, lat, 4.0, 2000))
    touched = {
        (i['collection'], i['id']) for i in items if any(shape(i['geometry']).intersects(p) for p in outlines[::9])
    }
    assert touched <= set(keys(found)) and found.counts['requests'] < 60 < len(outlines)


def test_the_period_has_both_days(api: str, items: list[Item], tmp_path: Path) -> None:
    """Scenes of the first and the last day are in."""
    days = sorted({i['properties']['datetime'][:10] for i in items if i['collection'] == 'naip'})
    period = (date.fromisoformat(days[len(days) // 3]), date.fromisoformat(days[2 * len(days) // 3]))
    found = load_scenes(source(api, tmp_path, period=period), WORLD)
    assert keys(found) == naive(items, [WORLD], period=period)
    dates = {s.when.date() for s in found}
    assert period[0] in dates and period[1] in dates


def test_the_cloud_limit_is_pushed_and_keeps_what_says_nothing(api: str, items: list[Item], tmp_path: Path) -> None:
    """NAIP states no clouds and stays; the server leaves out cloudy Sentinel-2 scenes, so none is dropped here."""
    found = load_scenes(source(api, tmp_path, max_cloud_percent=30), WORLD)
    assert keys(found) == naive(items, [WORLD], cloud=30)
    assert {s.collection for s in found} == set(COLLECTIONS) and 'too cloudy' not in found.counts
    assert found.counts['items'] == len(found)


CONDITIONS: list[tuple[dict[str, Any], Any]] = [
    ({'eo:cloud_cover': {'lt': 40, 'gte': 2}}, lambda p: 2 <= p.get('eo:cloud_cover', 99) < 40),
    ({'naip:state': {'eq': 'vt'}}, lambda p: p.get('naip:state') == 'vt'),
    ({'naip:state': {'neq': 'vt'}}, lambda p: p.get('naip:state', 'vt') != 'vt'),
    ({'naip:year': {'in': ['2014', '2018']}}, lambda p: p.get('naip:year') in ('2014', '2018')),
    ({'gsd': {'lte': 0.6}}, lambda p: p.get('gsd', 9) <= 0.6),
    ({'s2:processing_baseline': {'gte': '04.00'}}, lambda p: p.get('s2:processing_baseline', '') >= '04.00'),
    ({'s2:mgrs_tile': {'startsWith': '60V'}}, lambda p: p.get('s2:mgrs_tile', '').startswith('60V')),
    ({'earthsearch:boa_offset_applied': {'eq': True}}, lambda p: p.get('earthsearch:boa_offset_applied') is True),
    ({'platform': {'startsWith': 'S%'}}, lambda p: p.get('platform', '').startswith('S%')),
]


@pytest.mark.parametrize('cloud', [None, 50.0], ids=['query', 'cql2'])
@pytest.mark.parametrize(('where', 'keep'), CONDITIONS, ids=[next(iter(w)) for w, _ in CONDITIONS])
def test_conditions_on_properties(
    api: str, items: list[Item], tmp_path: Path, where: dict[str, Any], keep: Any, cloud: float | None
) -> None:
    """Every operator gives what a loop gives, by the query extension and, beside a cloud limit, by CQL2."""
    expected = naive(items, [WORLD], cloud=cloud, keep=keep)
    settings = source(api, tmp_path, where=where, max_cloud_percent=cloud)
    if not expected:
        with pytest.raises(GrafalignError, match=r'none of its \d+ items'):
            load_scenes(settings, WORLD)
        return
    found = load_scenes(settings, WORLD)
    assert keys(found) == expected
    operators = set(next(iter(where.values())))
    unknown_to_query = cloud is None and bool(operators & {'in', 'startsWith'})
    assert found.counts.get('filters refused by the server', 0) == unknown_to_query
    assert found.counts['items'] == len(found)  # the server did all the work


def test_a_property_that_no_item_has(api: str, tmp_path: Path) -> None:
    """The server finds nothing and says nothing; the sentence names the property all the same."""
    with pytest.raises(GrafalignError, match=r'no item has the property eo:clouds.*did you mean eo:cloud_cover'):
        load_scenes(source(api, tmp_path, collections=['sentinel-2-l2a'], where={'eo:clouds': {'lt': 5}}), WORLD)


def test_a_second_run_asks_nothing(api: str, tmp_path: Path) -> None:
    """The kept search gives the same scenes without a single request."""
    settings = source(api, tmp_path, page_items=100)
    first, again = (load_scenes(settings, [VERMONT, (100.0, 0.0, 150.0, 60.0)]) for _ in range(2))
    assert (
        keys(first) == keys(again)
        and first.counts['requests'] == again.counts.get('requests', 0) + first.counts['requests']
    )
    assert again.counts['regions from cache'] == 2 and 'pages' not in again.counts


def test_bands_mean_the_same_after_the_api_and_the_kept_table(api: str, items: list[Item], tmp_path: Path) -> None:
    """Scale, offset, address, time, clouds and outline of every item are those of the file that was loaded.

    pgstac takes an item apart and puts it together again: it orders assets anew, fills in what all items of the
    collection have from `item_assets`, and adds links of its own. Nothing of that may change what a band means.
    """
    bands = {'naip': ['red', 'image:4'], 'sentinel-2-l2a': ['B04', 'B08'], 'earth-search-s2': ['red', 'nir']}
    load_scenes(source(api, tmp_path), WORLD)
    found = {(s.collection, s.item_id): s for s in load_scenes(source(api, tmp_path), WORLD)}
    for item in items:
        scene = found[item['collection'], item['id']]
        names = [b for b in bands[item['collection']] if item['collection'] == 'naip' or b in item['assets']]
        assert band_sources(scene.item, names, 10) == band_sources(item, names, 10)
        properties = item['properties']
        assert scene.when == datetime.fromisoformat(properties['datetime'].replace('Z', '+00:00'))
        assert scene.cloud_percent == properties.get('eo:cloud_cover')
        assert scene.baseline == properties.get('s2:processing_baseline')
        for key, value in properties.items():
            if key.startswith(('proj:', 's2:', 'earthsearch:')):
                assert scene.item['properties'][key] == pytest.approx(value) if not isinstance(value, dict) else True
        assert shape(item['geometry']).symmetric_difference(scene.footprint).area < 1e-9
