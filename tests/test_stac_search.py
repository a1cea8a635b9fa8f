"""The bulk search of a STAC API against a small server that pages, filters and misbehaves; and what is kept of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import shapely

from grafalign.errors import GrafalignError
from grafalign.scenes.items import FoundScenes, load_scenes
from grafalign.scenes.source import SceneSource
from grafalign.web.retries import CappedRetry
from tests.proxy_server import proxy_server
from tests.stac_server import (
    Handler,
    StacServer,
    reset_at_once,
    reset_in_the_middle,
    silence,
    stac_server,
    stall_in_the_middle,
    status,
)

REGION = (0.0, 0.0, 10.0, 10.0)
Item = dict[str, Any]


def item(number: int, **changes: Any) -> Item:
    """Item number 0 to 99 over one square degree of the region, on a day of its own, with clouds like its number."""
    column, row = number % 10, number // 10 % 10
    properties = {
        'datetime': f'2021-{1 + number % 12:02d}-{1 + number % 28:02d}T10:00:00Z',
        'eo:cloud_cover': float(number),
        'platform': 'b' if number % 2 else 'a',
    }
    box = shapely.box(column + 0.1, row + 0.1, column + 0.9, row + 0.9)
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': f's{number:03d}',
        'collection': 's2',
        'bbox': list(box.bounds),
        'geometry': shapely.geometry.mapping(box),
        'properties': properties,
        'links': [],
        'assets': {'red': {'href': f'https://example.org/{number}.tif'}},
        **changes,
    }


@pytest.fixture
def server() -> Iterator[StacServer]:
    """A server with thirty items."""
    with stac_server([item(n) for n in range(30)]) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder for searches."""
    return tmp_path / 'cache'


def source(server: StacServer, cache: Path, **changes: Any) -> SceneSource:
    """The `scenes:` part of a recipe for the server."""
    settings = {'api': server.root, 'collections': ['s2'], 'cache': cache, 'page_items': 10, 'retries': 2, **changes}
    return SceneSource.model_validate(settings)


def names(found: FoundScenes) -> list[str]:
    """Ids in order."""
    return sorted(s.item_id for s in found)


ALL = [f's{n:03d}' for n in range(30)]

# --- one bulk search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('merge', [True, False])
def test_pages_are_followed_by_post(server: StacServer, cache: Path, merge: bool) -> None:
    """All pages of one search, with next links whose bodies are merged or complete, and nothing asked twice."""
    server.merge = merge
    found = load_scenes(source(server, cache), REGION)
    assert names(found) == ALL
    assert [s.get('token') for s in server.searches] == [None, '10', '20']
    assert all(s['bbox'] == list(REGION) and s['collections'] == ['s2'] for s in server.searches)
    assert found.counts == {'items': 30, 'scenes': 30, 'regions': 1, 'requests': 4, 'pages': 3}


def test_a_server_that_knows_only_get_is_asked_by_get(server: StacServer, cache: Path) -> None:
    """GET where POST is not offered, following relative next links."""
    server.methods = ('GET',)
    assert names(load_scenes(source(server, cache), REGION)) == ALL and len(server.searches) == 3


def test_a_server_that_refuses_post_is_asked_by_get(server: StacServer, cache: Path) -> None:
    """POST is offered and answered 405: the search goes on by GET, with its conditions."""
    server.methods, server.advertised = ('GET',), ('GET', 'POST')
    server.conforms += ['item-search#query']
    found = load_scenes(source(server, cache, where={'eo:cloud_cover': {'lt': 15}}), REGION)
    assert names(found) == ALL[:15] and len(server.searches) == 2 and found.counts['items'] == 15


def test_items_may_leave_out_their_collection(server: StacServer, cache: Path) -> None:
    """An item without a collection belongs to the only one that was asked for."""
    server.page = lambda page: {**page, 'features': [{**f, 'collection': None} for f in page['features']]}
    assert {s.collection for s in load_scenes(source(server, cache), REGION)} == {'s2'}


def test_requests_grow_with_regions_not_with_places(server: StacServer, cache: Path) -> None:
    """Two regions are two searches; items on both are one scene."""
    server.items.append(item(98, geometry=shapely.geometry.mapping(shapely.box(3, 0, 7, 1)), id='both'))
    found = load_scenes(source(server, cache, page_items=100), [(0, 0, 4, 4), (6, 0, 10, 4)])
    expected = [i['id'] for i in server.items if int(i['id'][1:] if i['id'] != 'both' else 0) % 10 not in (4, 5)]
    assert names(found) == sorted(expected)
    assert len(server.searches) == 2 and found.counts['duplicates'] == 1 and found.counts['regions'] == 2


def test_tiles_keep_only_the_scenes_that_touch_them(server: StacServer, cache: Path) -> None:
    """With the plan's tiles, scenes elsewhere in the region are not kept."""
    import numpy as np

    tiles = np.array([shapely.box(2.4, 1.4, 2.5, 1.5), shapely.box(0.95, 0.95, 1.05, 1.05)])
    assert names(load_scenes(source(server, cache), REGION, tiles=tiles)) == ['s012']


# --- the searches that are kept ---------------------------------------------------------------------------------------


def test_a_finished_search_is_reused(server: StacServer, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run makes no request, says where the search came from, and gives the same; deleting it searches anew."""
    server.items[3]['geometry'] = None
    first = load_scenes(source(server, cache), REGION)
    capsys.readouterr()
    asked = len(server.searches) + len(server.landing)
    again = load_scenes(source(server, cache), REGION)
    assert len(server.searches) + len(server.landing) == asked
    assert again.counts == {'items': 29, 'scenes': 29, 'rejected': 1, 'regions': 1, 'regions from cache': 1}
    assert again.rejected == first.rejected == [('scene', 's003', 'the item has no outline', '')]
    assert [(s.item_id, s.when, s.item['assets']) for s in again] == [
        (s.item_id, s.when, s.item['assets']) for s in first
    ]
    (table,) = cache.rglob('*.parquet')
    today = datetime.now(timezone.utc).strftime('%Y-%m-%d')
    assert capsys.readouterr().err.strip() == f'reusing the search of {today} (delete {table} to search anew)'
    table.unlink()
    assert names(load_scenes(source(server, cache), REGION)) == names(first) and len(server.searches) == 6


def test_the_kept_table_is_stac_geoparquet_with_its_question(server: StacServer, cache: Path) -> None:
    """Other tools read the table, and the JSON beside it says what was asked, when, and what came."""
    import geopandas as gpd

    load_scenes(source(server, cache, where={'platform': {'eq': 'a'}}, period=('2021-01-01', '2021-06-30')), REGION)
    (table,) = cache.rglob('*.parquet')
    frame = gpd.read_parquet(table)
    assert {'id', 'geometry', 'datetime', 'eo:cloud_cover', 'assets'} <= set(frame.columns) and frame.crs == 'OGC:CRS84'
    metadata = json.loads(table.with_suffix('.json').read_text())
    assert metadata['api'] == server.root and metadata['where'] == {'platform': {'eq': 'a'}}
    assert metadata['period'] == '2021-01-01T00:00:00Z/2021-06-30T23:59:59Z' and metadata['items'] == len(frame)
    assert metadata['region'] == list(REGION) and metadata['searched_at'] and metadata['counts']['pages'] >= 2


@pytest.mark.parametrize(
    'change',
    [{'collections': ['other']}, {'period': ('2021-01-01', '2021-12-30')}, {'where': {'platform': {'eq': 'a'}}}],
)
def test_another_question_is_another_search(server: StacServer, cache: Path, change: dict[str, Any]) -> None:
    """Another collection, period or condition does not find the kept search; neither does another region."""
    server.items += [item(40, collection='other')]
    load_scenes(source(server, cache), REGION)
    asked = len(server.searches)
    load_scenes(source(server, cache, **change), REGION)
    assert len(server.searches) > asked
    asked = len(server.searches)
    load_scenes(source(server, cache), (0.0, 0.0, 9.0, 9.0))
    assert len(server.searches) > asked


@pytest.mark.parametrize('damage', ['short', 'garbled', 'one byte', 'no json', 'half json', 'parts only'])
def test_a_damaged_search_is_made_anew(server: StacServer, cache: Path, damage: str) -> None:
    """Nothing that is not whole is taken for a search."""
    load_scenes(source(server, cache), REGION)
    (table,) = cache.rglob('*.parquet')
    content, told = table.read_bytes(), table.with_suffix('.json')
    if damage == 'short':
        table.write_bytes(content[:-1])
    elif damage == 'garbled':
        table.write_bytes(b'x' * len(content))
    elif damage == 'one byte':
        middle = len(content) // 2
        table.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == 'no json':
        told.unlink()
    elif damage == 'half json':
        told.write_text(told.read_text()[:-20])
    else:
        table.rename(f'{table}.part')
    asked = len(server.searches)
    assert names(load_scenes(source(server, cache), REGION)) == ALL and len(server.searches) == asked + 3


def test_a_failed_search_keeps_the_regions_that_were_done(server: StacServer, cache: Path) -> None:
    """After an error in the second region, the next run asks only for that."""
    regions = [(0.0, 0.0, 4.0, 4.0), (6.0, 0.0, 10.0, 4.0)]

    def second(handler: Handler) -> bool:
        return handler.asked['bbox'][0] == 6 and status(404)(handler)

    server.always = second
    with pytest.raises(GrafalignError, match='did not answer'):
        load_scenes(source(server, cache), regions)
    assert len(list(cache.rglob('*.parquet'))) == 1 and not list(cache.rglob('*.part'))
    server.always, server.searches[:] = None, []
    found = load_scenes(source(server, cache), regions)
    assert {s['bbox'][0] for s in server.searches} == {6} and found.counts['regions from cache'] == 1
    assert len(found) == 24


def test_a_killed_run_goes_on_where_it_was(server: StacServer, cache: Path) -> None:
    """A process that is killed during the second region leaves the first, and nothing else that counts."""
    server.always = lambda handler: handler.asked['bbox'][0] == 6 and silence(30)(handler)
    code = (
        'from grafalign.scenes import *; import sys\n'
        f'source = SceneSource(api={server.root!r}, collections=["s2"], cache={str(cache)!r}, page_items=10)\n'
        'load_scenes(source, [(0, 0, 4, 4), (6, 0, 10, 4)])'
    )
    process = subprocess.Popen([sys.executable, '-c', code])
    try:
        deadline = time.monotonic() + 60
        while not any(s['bbox'][0] == 6 for s in server.searches):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    server.always, server.searches[:] = None, []
    assert len(load_scenes(source(server, cache), [(0, 0, 4, 4), (6, 0, 10, 4)])) == 24
    assert {s['bbox'][0] for s in server.searches} == {6}


def test_the_cache_lies_where_the_system_keeps_such_things(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$XDG_CACHE_HOME, else ~/.cache, unless the recipe says where; and it is no part of the recipe's identity."""
    one = SceneSource(api='https://example.org', collections=['x'])
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert one.cache_folder == tmp_path / 'grafalign' / 'scenes'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert one.cache_folder == tmp_path / '.cache' / 'grafalign' / 'scenes'
    other = SceneSource(api='https://example.org', collections=['x'], cache=tmp_path / 'mine')
    assert other.cache_folder == tmp_path / 'mine' and other.model_dump_json() == one.model_dump_json()


def test_a_cache_that_cannot_be_written_is_one_sentence(server: StacServer, tmp_path: Path) -> None:
    """The folder and the setting are named."""
    (tmp_path / 'file').write_text('')
    with pytest.raises(GrafalignError, match=r'file/.*cannot be written.*scenes.cache'):
        load_scenes(source(server, tmp_path / 'file'), REGION)


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('conforms', [[], ['item-search#query']])
def test_conditions_give_the_same_with_and_without_the_servers_help(
    server: StacServer, cache: Path, conforms: list[str]
) -> None:
    """`where` is applied here always, and sent along where the server declares the query extension."""
    server.conforms += conforms
    where = {'platform': {'in': ['a', 'c']}, 'eo:cloud_cover': {'gte': 4, 'lt': 20}}
    del server.items[6]['properties']['eo:cloud_cover']
    found = load_scenes(source(server, cache, where=where), REGION)
    assert names(found) == [f's{n:03d}' for n in (4, 8, 10, 12, 14, 16, 18)]
    assert [s.get('query') for s in server.searches][:1] == [where if conforms else None]
    assert found.counts['items'] == (7 if conforms else 30) and found.counts.get('where', 0) == (0 if conforms else 23)


def test_the_cloud_limit_keeps_scenes_that_say_nothing(server: StacServer, cache: Path) -> None:
    """The query extension cannot say `or missing`, so the limit is not sent to it."""
    server.conforms += ['item-search#query']
    del server.items[25]['properties']['eo:cloud_cover']
    found = load_scenes(source(server, cache, max_cloud_percent=2), REGION)
    assert names(found) == ['s000', 's001', 's002', 's025'] and 'query' not in server.searches[0]
    assert found.counts['too cloudy'] == 26


def test_a_filter_that_is_refused_is_left_to_us(server: StacServer, cache: Path) -> None:
    """A server that declares filters and answers 400 to them is asked without."""
    server.conforms += ['item-search#filter']
    server.always = lambda handler: 'filter' in handler.asked and status(400)(handler)
    found = load_scenes(source(server, cache, max_cloud_percent=3), REGION)
    assert names(found) == ['s000', 's001', 's002', 's003']
    assert found.counts['filters refused by the server'] == 1


def test_a_misspelt_property_is_named(server: StacServer, cache: Path) -> None:
    """Whether or not the server filters, a property that no item has is named with its neighbours."""
    for conforms in ([], ['item-search#query']):
        server.conforms = ['core', 'item-search', *conforms]
        with pytest.raises(
            GrafalignError, match=r'no item has the property eo:cloudcover.*did you mean eo:cloud_cover'
        ):
            load_scenes(source(server, cache, where={'eo:cloudcover': {'lt': 5}}), REGION)
    server.conforms = ['core', 'item-search']
    with pytest.raises(GrafalignError, match=r"platform with another kind.*'a', a text"):
        load_scenes(source(server, cache / 'b', where={'platform': {'gt': 5}}), REGION)


def test_the_period_is_sent_in_whole_days(server: StacServer, cache: Path) -> None:
    """The photos' times are rounded to days, so that one more photo on a day finds the kept search."""
    first = datetime(2021, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
    load_scenes(source(server, cache), REGION, (first, first + timedelta(days=90)))
    assert server.searches[0]['datetime'] == '2021-02-03T00:00:00Z/2021-05-04T23:59:59Z'
    asked = len(server.searches)
    load_scenes(source(server, cache), REGION, (first - timedelta(hours=1), first + timedelta(days=90, hours=2)))
    assert len(server.searches) == asked


# --- servers that misbehave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('fault', 'waits_s'),
    [
        (status(429, Retry_After='1'), 0.9),
        (status(503, Retry_After='1'), 0.9),
        (status(503, Retry_After='DATE'), 0.9),
        (status(503, Retry_After='soon'), 0),
        (status(502), 0),
        (status(429), 0),
        (reset_at_once, 0),
        (reset_in_the_middle, 0),
        (silence(1.5), 0.4),
        (stall_in_the_middle(1.5), 0.4),
        (status(200, '<html><body>Gateway</body></html>'), 0),
        (status(200, '{"type": "FeatureCollection", "features": ['), 0),
    ],
    ids=[
        '429',
        '503',
        '503 date',
        '503 soon',
        '502',
        '429 bare',
        'reset',
        'half a page',
        'silence',
        'stall',
        'html',
        'half json',
    ],
)
def test_what_fails_for_the_moment_is_tried_again(server: StacServer, cache: Path, fault: Any, waits_s: float) -> None:
    """Whatever happens to the second page, the search is complete, the retry is counted, and a wait is respected."""
    if fault.__closure__ and any(c.cell_contents == {'Retry_After': 'DATE'} for c in fault.__closure__):
        fault = _busy_until_a_date
    server.faults = [lambda handler: False, fault]
    begin = time.monotonic()
    found = load_scenes(source(server, cache, timeout_s=0.5), REGION)
    assert names(found) == ALL
    assert found.counts['retries'] == 1 and found.counts['pages'] == 3 and len(server.searches) == 4
    assert time.monotonic() - begin >= waits_s


def test_no_server_makes_us_wait_for_hours() -> None:
    """A day's Retry-After is five minutes."""
    tomorrow = format_datetime(datetime.now(timezone.utc) + timedelta(days=1), usegmt=True)
    assert [CappedRetry().parse_retry_after(t) for t in ('2', '86400', tomorrow)] == [2, 300, 300]


def _busy_until_a_date(handler: Handler) -> bool:
    """503 with an HTTP date two seconds from now; dates have whole seconds, so it is one to two seconds."""
    when = datetime.now(timezone.utc) + timedelta(seconds=2)
    return status(503, Retry_After=format_datetime(when, usegmt=True))(handler)


@pytest.mark.parametrize(
    ('fault', 'says'),
    [
        (status(503), '503'),
        (status(404, 'no such thing'), 'no such thing'),
        (reset_in_the_middle, 'broken|Incomplete'),
        (silence(0.6), 'timed out'),
        (status(200, '<html>maintenance</html>'), 'not JSON.*maintenance'),
        (status(200, '[1, 2]'), 'no list of items'),
        (status(200, '{"features": null}'), 'no list of items'),
    ],
    ids=['503', '404', 'half a page', 'silence', 'html', 'list', 'null'],
)
def test_what_stays_broken_is_one_sentence(server: StacServer, cache: Path, fault: Any, says: str) -> None:
    """The address and the trouble are named, and nothing is kept as a search."""
    server.always = fault
    with pytest.raises(GrafalignError, match=rf'{server.root}.*(?s:{says}).*scenes.api'):
        load_scenes(source(server, cache, timeout_s=0.3, retries=1), REGION)
    assert not list(cache.rglob('*.parquet'))


def test_something_else_at_the_address_is_one_sentence(server: StacServer, cache: Path) -> None:
    """JSON that is no landing page, and a port where nothing listens."""
    server.conforms = []
    with pytest.raises(GrafalignError, match=rf'{server.root}.*ITEM_SEARCH.*scenes.api'):
        load_scenes(source(server, cache), REGION)
    with pytest.raises(GrafalignError, match=r'http://127.0.0.1:9 did not answer'):
        load_scenes(SceneSource(api='http://127.0.0.1:9', collections=['x'], cache=cache, retries=1), REGION)


@pytest.mark.parametrize('how', ['same link', 'new links'])
def test_a_page_that_repeats_forever_ends(server: StacServer, cache: Path, how: str) -> None:
    """A last page that leads to itself, or to copies of itself under new links, ends the search and is counted."""
    tokens = iter(range(1000, 2000))

    def loop(page: dict[str, Any]) -> dict[str, Any]:
        if not page['links']:
            page['features'] = page['features'] or server.items[20:]
            token = '20' if how == 'same link' else str(next(tokens))
            body = {'token': token}
            page['links'] = [
                {'rel': 'next', 'href': f'{server.root}/search', 'method': 'POST', 'merge': True, 'body': body}
            ]
        return page

    server.page = loop
    found = load_scenes(source(server, cache), REGION)
    assert names(found) == ALL and found.counts['repeated pages'] == (1 if how == 'same link' else 3)
    assert len(server.searches) == (3 if how == 'same link' else 6)


def test_a_search_that_turns_in_circles_before_its_end_is_an_error(server: StacServer, cache: Path) -> None:
    """If the server says that there is more than its circle of pages gave, the search is not taken for complete."""
    link = {'rel': 'next', 'href': f'{server.root}/search', 'method': 'POST', 'merge': True, 'body': {'token': '10'}}
    server.page = lambda page: {**page, 'numberMatched': 30, 'links': [link]}
    with pytest.raises(GrafalignError, match='repeats its pages and gave 20 of 30 items'):
        load_scenes(source(server, cache), REGION)
    assert not list(cache.rglob('*.parquet'))


def test_an_empty_page_is_not_the_end(server: StacServer, cache: Path) -> None:
    """Servers that filter after paging send pages without items and go on."""
    server.page = lambda page: {**page, 'features': [f for f in page['features'] if not 's010' <= f['id'] < 's020']}
    assert names(load_scenes(source(server, cache), REGION)) == ALL[:10] + ALL[20:]


def test_pages_too_large_for_the_server_become_smaller(server: StacServer, cache: Path) -> None:
    """A gateway that cannot pass on so many items at once is asked for fewer."""
    server.always = lambda handler: handler.asked['limit'] > 15 and status(413)(handler)
    found = load_scenes(source(server, cache, page_items=160), REGION)
    assert names(found) == ALL and found.counts['searches with smaller pages'] == 2


def test_bad_items_are_rows_not_the_end(server: StacServer, cache: Path) -> None:
    """Items without outline, time, id or assets, or with nonsense there, are rejected with a reason."""
    without_bbox = item(7, bbox=None)
    server.items[7] = without_bbox
    server.items += [
        item(30, id='no outline', geometry=None, bbox=None),
        item(31, id='bad outline', geometry={'type': 'Polygon', 'coordinates': [[[0, 0], [1, 'x']]]}),
        item(32, id='metres', geometry=shapely.geometry.mapping(shapely.box(500_000, 0, 500_100, 100))),
        item(33, id='bad time', properties={'datetime': 'yesterday'}),
        item(34, id='no time', properties={'datetime': None}),
        item(35, id='cloudy?', properties={'datetime': '2021-01-01T00:00:00Z', 'eo:cloud_cover': 'much'}),
        item(36, id=None),
        item(37, id='no assets', assets=None),
        item(38, id='no properties', properties=['?']),
    ]
    server.matching = lambda asked: server.items  # type: ignore[method-assign]
    found = load_scenes(source(server, cache), REGION)
    assert names(found) == ALL
    assert {(i, reason) for _, i, reason, _ in found.rejected} == {
        ('no outline', 'the item has no outline'),
        ('bad outline', "the item's outline makes no sense"),
        ('metres', "the item's outline makes no sense"),
        ('bad time', "the item's time makes no sense"),
        ('no time', 'the item has no time'),
        ('cloudy?', "the item's cloud cover makes no sense"),
        ('None', 'the item has no id'),
        ('no assets', 'the item has no assets'),
        ('no properties', 'the item has no properties'),
    }
    assert found.counts['rejected'] == 9


JUNK: list[Any] = [None, 5, 'x', [], {}, [5], {'a': 5}, [{'rel': 5, 'href': 5}], {'red': None}, {'red': {'href': 5}}]


def test_junk_in_any_member_is_no_crash(server: StacServer, cache: Path) -> None:
    """Whatever a member of an item holds, the run goes on: the item is used or rejected, and its table is written."""
    for member in ('stac_version', 'stac_extensions', 'bbox', 'geometry', 'properties', 'links', 'assets'):
        server.items[:] = [item(n) for n in range(3)]
        server.items += [item(10 + n, **{member: junk}) for n, junk in enumerate(JUNK)]
        server.matching = lambda asked: server.items  # type: ignore[method-assign]
        found = load_scenes(source(server, cache / member, page_items=100), REGION)
        assert {'s000', 's001', 's002'} <= set(names(found))
        assert len(found) + found.counts.get('rejected', 0) == 13
        again = load_scenes(source(server, cache / member, page_items=100), REGION)
        assert names(again) == names(found) and again.rejected == found.rejected


def test_an_item_of_two_regions_is_rejected_once(server: StacServer, cache: Path) -> None:
    """Bad items come with every region, because nobody knows where they are."""
    server.items[0]['geometry'] = None
    found = load_scenes(source(server, cache), [(0.0, 0.0, 4.0, 4.0), (6.0, 0.0, 10.0, 4.0)])
    assert found.rejected == [('scene', 's000', 'the item has no outline', '')]


def test_items_twice_on_pages_are_one_scene(server: StacServer, cache: Path) -> None:
    """A list that shifts while it is paged shows some items twice."""
    server.items.insert(10, server.items[9])
    server.items.insert(21, server.items[3])
    found = load_scenes(source(server, cache), REGION)
    assert names(found) == ALL and found.counts['duplicates'] == 2


# --- addresses --------------------------------------------------------------------------------------------------------


def with_hrefs(server: StacServer, *hrefs: str) -> None:
    """Let the server's first items have these addresses."""
    for each, href in zip(server.items, hrefs, strict=False):
        each['assets'] = {'red': {'href': href}}


def test_items_of_an_api_may_not_point_into_this_machine(server: StacServer, cache: Path) -> None:
    """Files, plain paths and GDAL's own schemes are rejected with their address; relative ones are the API's."""
    bad = ('file:///etc/passwd', '/etc/passwd', '/vsicurl/http://x/a.tif', 'vrt:///a.tif', 'ftp://x/a.tif', '')
    with_hrefs(server, *bad, 's3://bucket/a.tif', 'a b.tif')
    server.items[7]['links'] = [{'rel': 'self', 'href': 'https://example.org/items/s007'}]
    found = load_scenes(source(server, cache), REGION)
    assert names(found) == ALL[6:]
    assert {r[1] for r in found.rejected} == set(ALL[:6])
    assert {r[2] for r in found.rejected} == {'the address of an asset is not allowed'}
    assert all(href in detail for href, (*_, detail) in zip(bad, sorted(found.rejected), strict=True))
    assert (
        next(s for s in found if s.item_id == 's007').item['assets']['red']['href']
        == 'https://example.org/items/a b.tif'
    )
    allowed = load_scenes(source(server, cache, schemes=['https', 's3', 'file']), REGION)
    assert 's000' in names(allowed) and 's003' not in names(allowed)


def test_public_items_may_not_point_into_the_private_network(
    server: StacServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private addresses, in all their spellings, need `private_addresses` unless the API itself has such an address."""
    from grafalign.scenes.hrefs import is_private, refused

    private = ('127.0.0.1', '10.1.2.3', '192.168.0.1', '169.254.169.254', '[::1]', '[fe80::1]', '[::ffff:10.0.0.1]')
    for host in (*private, '127.1', '2130706433', '0x7f000001', '0.0.0.0', 'localhost', '100.64.0.1'):
        assets = {'a': {'href': f'http://{host}:8080/a.tif'}}
        assert (
            refused({'assets': assets}, ['http'], True)
            == f'a: http://{host}:8080/a.tif (an address of a private network)'
        )
        assert refused({'assets': assets}, ['http'], False) is None
    assert not is_private('8.8.8.8') and not is_private('2606:4700:4700::1111')
    with_hrefs(server, 'http://10.1.2.3/a.tif')
    assert names(load_scenes(source(server, cache), REGION)) == ALL
    # the same server at a public address, to which a proxy leads
    server.root = 'http://192.0.43.8'
    with proxy_server({'192.0.43.8': server.server_port}) as proxy:
        monkeypatch.setenv('http_proxy', proxy.address())
        public = source(server, cache)
        found = load_scenes(public, REGION)
        assert names(found) == ALL[1:]
        assert 'http://10.1.2.3/a.tif (an address of a private network)' in found.rejected[0][3]
        assert names(load_scenes(public.model_copy(update={'private_addresses': True}), REGION)) == ALL
