"""Scenes: where they are read from, what their numbers mean, which is chosen, and that pixels are copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import shapely

from grafalign.config import parse_settings
from grafalign.errors import GrafalignError
from grafalign.scenes import (
    Scene,
    SceneSource,
    band_sources,
    load_scenes,
)
from tests.recorded import recorded

ALL = (-31.0, 44.0, -29.0, 46.0)


def lines(path: Path) -> list[dict[str, Any]]:
    """Items of an NDJSON file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def test_catalog_items_and_parquet_give_the_same_scenes(world: Path, tmp_path: Path) -> None:
    """A static catalog, an ItemCollection, NDJSON and stac-geoparquet of the same items are read alike."""
    import pyarrow.parquet
    from stac_geoparquet.arrow import parse_stac_items_to_arrow

    found = load_scenes(SceneSource(catalog=world / 'catalog' / 'catalog.json'), ALL)
    items = [s.item for s in found]
    (tmp_path / 'a.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    (tmp_path / 'b.ndjson').write_text('\n'.join(json.dumps(i) for i in items))
    same_shape = [i for i in items if i['collection'] == 'sandbox-ms']
    pyarrow.parquet.write_table(parse_stac_items_to_arrow(same_shape).read_all(), tmp_path / 'c.parquet')

    def metadata(scenes: list[Scene]) -> list[tuple[object, ...]]:
        return [
            (s.item_id, s.when, s.cloud_percent, {k: a['href'] for k, a in s.item['assets'].items()}) for s in scenes
        ]

    assert len(found) == 12
    assert metadata(load_scenes(SceneSource(items=tmp_path / 'a.json'), ALL)) == metadata(found)
    assert metadata(load_scenes(SceneSource(items=tmp_path / 'b.ndjson'), ALL)) == metadata(found)
    ms = [s for s in found if s.collection == 'sandbox-ms']
    assert metadata(load_scenes(SceneSource(items=tmp_path / 'c.parquet'), ALL)) == metadata(ms)


def test_filters_by_collection_cloud_and_period(world: Path) -> None:
    """Each filter leaves what it says, and what no filter leaves is an error that names them."""
    catalog = world / 'catalog' / 'catalog.json'
    clear = load_scenes(SceneSource(catalog=catalog, collections=['sandbox-ms'], max_cloud_percent=10), ALL)
    assert {s.when.month for s in clear} == {2, 5, 7, 10}
    summer = load_scenes(SceneSource(catalog=catalog, period=('2021-07-01', '2021-07-31')), ALL)
    assert {s.item_id for s in summer} == {'ms_20210719_west', 'ms_20210719_east'}
    with pytest.raises(GrafalignError, match=r'none of its 12 items.*scenes.period'):
        load_scenes(SceneSource(catalog=catalog, period=('1999-01-01', '1999-12-31')), ALL)


def item_at(name: str, lon: float, lat: float, **changes: Any) -> dict[str, Any]:
    """An item of one degree around a place."""
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': name,
        'collection': 'c',
        'geometry': shapely.geometry.mapping(shapely.box(lon - 0.5, lat - 0.5, lon + 0.5, lat + 0.5)),
        'properties': {'datetime': '2021-01-01T00:00:00Z'},
        'links': [],
        'assets': {'red': {'href': 'red.tif'}},
        **changes,
    }


def test_a_bad_item_is_a_row_whatever_the_source(world: Path, tmp_path: Path) -> None:
    """One bad item in a file or a catalog is rejected with its reason, and the others are used."""
    bad = item_at('bad', -30, 45, properties={'datetime': 'never'})
    (tmp_path / 'a.json').write_text(json.dumps([item_at('good', -30, 45), bad, {'no': 'item'}]))
    (tmp_path / 'a.ndjson').write_text(f'{json.dumps(item_at("good", -30, 45))}\n{{"id":\n{json.dumps(bad)}\n')
    found = load_scenes(SceneSource(items=tmp_path / 'a.json'), ALL)
    assert [s.item_id for s in found] == ['good'] and found.counts == {'items': 2, 'scenes': 1, 'rejected': 2}
    assert sorted(r[:3] for r in found.rejected) == [
        ('scene', 'bad', "the item's time makes no sense"),
        ('scene', 'entry 2', 'is not a STAC item'),
    ]
    found = load_scenes(SceneSource(items=tmp_path / 'a.ndjson'), ALL)
    assert [s.item_id for s in found] == ['good'] and {r[1] for r in found.rejected} == {'line 2', 'bad'}

    catalog = shutil.copytree(world / 'catalog', tmp_path / 'catalog')
    broken = next((catalog / 'sandbox-ms').glob('*_west/*.json'))
    broken.write_text(broken.read_text()[:100])
    found = load_scenes(SceneSource(catalog=catalog / 'catalog.json'), ALL)
    assert len(found) == 11 and [r[:3] for r in found.rejected] == [('scene', str(broken), 'is not a STAC item')]


def test_escapes_of_relative_addresses_are_undone(tmp_path: Path) -> None:
    """A relative reference is a URI: `a%20b.tif` is the file `a b.tif`, unless a file of just that name is there."""
    (tmp_path / 'raw%20name.tif').write_bytes(b'')
    given = {
        'escaped': '2018-10-13%2C%20Sentinel-2B%20L1C%2C%20B02.tiff',
        'plain': '2018-10-13, Sentinel-2B L1C, B02.tiff',
        'dots': './bands/../a%2Bb.tif',
        'literal': 'raw%20name.tif',
        'file': 'file:///data/a%20b.tif',
        'path': '/data/a%20b.tif',
        'web': 'https://example.org/a%20b.tif',
    }
    item = item_at('a', -30, 45, assets={k: {'href': v} for k, v in given.items()})
    for name, content in (('a.json', json.dumps([item])), ('a.ndjson', json.dumps(item))):
        (tmp_path / name).write_text(content)
        assets = load_scenes(SceneSource(items=tmp_path / name), ALL)[0].item['assets']
        assert {k: a['href'] for k, a in assets.items()} == {
            'escaped': str(tmp_path / '2018-10-13, Sentinel-2B L1C, B02.tiff'),
            'plain': str(tmp_path / '2018-10-13, Sentinel-2B L1C, B02.tiff'),
            'dots': str(tmp_path / 'a+b.tif'),
            'literal': str(tmp_path / 'raw%20name.tif'),
            'file': '/data/a b.tif',
            'path': '/data/a%20b.tif',
            'web': 'https://example.org/a%20b.tif',
        }


def test_schemes_limit_what_a_recipe_reads(tmp_path: Path) -> None:
    """Local items may name files and the usual stores; `schemes` narrows that, and what it excludes has a reason."""
    hrefs = ('a.tif', 'https://example.org/a.tif', 's3://b/a.tif', 'ftp://example.org/a.tif')
    items = [item_at(f'i{n}', -30, 45, assets={'red': {'href': h}}) for n, h in enumerate(hrefs)]
    (tmp_path / 'a.json').write_text(json.dumps(items))
    assert [s.item_id for s in load_scenes(SceneSource(items=tmp_path / 'a.json'), ALL)] == ['i0', 'i1', 'i2']
    found = load_scenes(SceneSource(items=tmp_path / 'a.json', schemes=['https']), ALL)
    assert [s.item_id for s in found] == ['i1']
    assert {r[2] for r in found.rejected} == {'the address of an asset is not allowed'}


def test_conditions_on_local_items(tmp_path: Path) -> None:
    """`where` filters any source, counts what it leaves out, and names what it cannot compare."""
    values = [{'gsd': 0.6}, {'gsd': 1}, {'gsd': None}, {}, {'gsd': 'fine'}]
    items = [
        item_at(f'i{n}', -30, 45, properties={'datetime': '2021-01-01T00:00:00Z', **v}) for n, v in enumerate(values)
    ]
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(items))

    def used(**conditions: Any) -> list[str]:
        return [s.item_id for s in load_scenes(SceneSource(items=path, where={'gsd': conditions}), ALL)]

    assert used(lte=0.6) == ['i0'] and used(gt=0.1) == ['i0', 'i1'] and used(eq=1.0) == ['i1'] and used(neq=1) == ['i0']
    assert used(**{'in': [1, 2]}) == ['i1'] and used(startsWith='f') == ['i4']
    with pytest.raises(GrafalignError, match=r'no item has the property gds.*did you mean gsd'):
        load_scenes(SceneSource(items=path, where={'gds': {'lt': 1}}), ALL)
    with pytest.raises(GrafalignError, match=r'none of its 5 items.*5 where.*scenes.where'):
        load_scenes(SceneSource(items=path, where={'gsd': {'lt': 0}}), ALL)
    for where, says in (
        ({'gsd': {'less': 1}}, 'unknown operator'),
        ({'gsd': {'greater': 1, 'startswith': 'a'}}, 'unknown operator'),
        ({'gsd': 1}, 'operator: value|write the condition'),
        ({'gsd': {'in': 1}}, 'a list'),
        ({'gsd': {'lt': [1]}}, 'a number'),
        ({'gsd': {'startsWith': 1}}, 'a text'),
    ):
        with pytest.raises(GrafalignError, match=rf'recipe.yaml.*where.*({says})'):
            parse_settings({'items': 'a.json', 'where': where}, SceneSource, 'recipe.yaml')


@pytest.mark.parametrize('spelling', ['long way round', 'beyond 180', 'cut'])
def test_outlines_over_the_antimeridian(tmp_path: Path, spelling: str) -> None:
    """However an item spells an outline over longitude 180, it covers both sides and nothing else."""
    rings = {
        'long way round': [[[179, 0], [-179, 0], [-179, 1], [179, 1], [179, 0]]],
        'beyond 180': [[[179, 0], [181, 0], [181, 1], [179, 1], [179, 0]]],
    }
    geometry = {'type': 'Polygon', 'coordinates': rings.get(spelling)}
    if spelling == 'cut':
        parts = [shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)]
        geometry = shapely.geometry.mapping(shapely.MultiPolygon(parts))
    (tmp_path / 'a.json').write_text(json.dumps(item_at('a', 0, 0, geometry=geometry)))
    source = SceneSource(items=tmp_path / 'a.json')
    for box in ((179.2, 0.2, 179.8, 0.8), (-179.8, 0.2, -179.2, 0.8)):
        scene = load_scenes(source, box)[0]
        assert scene.footprint.contains(shapely.box(*box)) and scene.footprint.area == pytest.approx(2)
    with pytest.raises(GrafalignError, match='none of its 1 items'):
        load_scenes(source, (0, 0, 10, 1))


def test_earth_search_offset_is_not_applied_twice() -> None:
    """Earth Search says offset -0.1 and that it is applied already: only the scale is left, and 0 is missing."""
    (item,) = recorded('earth-search_sentinel-2-l2a')
    assert item['properties']['earthsearch:boa_offset_applied']
    source = band_sources(item, ['red'], 10)[0]
    assert (source.scale, source.offset, source.nodata) == (0.0001, 0.0, (0.0,))
    item['properties'].pop('earthsearch:boa_offset_applied')
    assert band_sources(item, ['red'], 10)[0].offset == -0.1


def test_planetary_computer_offset_follows_the_baseline() -> None:
    """Without raster:bands the offset is -0.1 from baseline 04.00 on and 0 before."""
    old, new = recorded('planetary-computer_sentinel-2-l2a')
    for item, offset in ((old, 0.0), (new, -0.1)):
        assert (float(item['properties']['s2:processing_baseline']) >= 4) == bool(offset)
        source = band_sources(item, ['B04'], 10)[0]
        assert (source.scale, source.offset) == (0.0001, offset)
    new['properties']['s2:processing_baseline'] = '04.00'
    assert band_sources(new, ['B04'], 10)[0].offset == -0.1


def test_a_classification_is_no_reflectance() -> None:
    """Classes of Sentinel-2's SCL are taken as they are: only the thirteen bands have the scale of reflectance."""
    source = band_sources(recorded('planetary-computer_sentinel-2-l2a')[0], ['SCL'], 10)[0]
    assert (source.scale, source.offset) == (None, None)


def test_naip_bands_are_found_in_its_one_asset() -> None:
    """Red, green and blue are bands 1 to 3 of `image`; scale and offset are left to the file."""
    (item,) = recorded('planetary-computer_naip')
    found = band_sources(item, ['red', 'green', 'blue'], 10)
    assert [(b.index, b.scale, b.offset) for b in found] == [(n, None, None) for n in (1, 2, 3)]
    assert {b.href for b in found} == {item['assets']['image']['href']}
    assert band_sources(item, ['image:4'], 10)[0].index == 4


def test_an_unknown_band_lists_those_there_are() -> None:
    """A band that an item lacks is named, with the item's bands."""
    (item,) = recorded('planetary-computer_naip')
    with pytest.raises(GrafalignError, match=r"no band 'thermal'.*image"):
        band_sources(item, ['thermal'], 10)
