"""Maps of others: Overture in either schema, real extracts, and files that are damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.captions.landmarks.find import Maps, find_landmarks
from grafalign.captions.landmarks.kinds import Kind
from grafalign.captions.landmarks.objects import MapObject
from grafalign.captions.landmarks.relate import landmarks_of
from tests.caption_world import picture
from tests.landmark_world import TILE, at, extract, found_in, place_set, rectangle, thing


def overture(path: Path, rows: list[dict[str, Any]], big_endian: bool = False) -> Path:
    """A file of Overture's form without GeoParquet metadata."""
    for row in rows:
        row['geometry'] = shapely.to_wkb(row['geometry'], byte_order=0 if big_endian else 1)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize('big_endian', [False, True])
def test_overture_is_read_in_either_schema_and_byte_order(big_endian: bool, tmp_path: Path) -> None:
    """Places by categories or taxonomy, base objects by class, buildings without a class."""
    west, south, east, north = TILE.bounds()
    box = {'xmin': west, 'ymin': south, 'xmax': east, 'ymax': north}
    point = shapely.Point(at(50, 50))
    common = {'bbox': box, 'geometry': point}
    places = [
        {'id': 'old', 'names': {'primary': 'Rialto'}, 'categories': {'primary': 'stadium_arena'}, **common},
        {'id': 'shop', 'names': {'primary': 'X'}, 'categories': {'primary': 'pharmacy'}, **common},
    ]
    new: list[dict[str, Any]] = [
        {'id': 'new', 'basic_category': 'gas_station', 'operating_status': 'open', **common},
        {'id': 'shut', 'basic_category': 'castle', 'operating_status': 'permanently_closed', **common},
        {'id': 'tax', 'taxonomy': {'primary': 'lighthouse'}, 'operating_status': None, **common},
    ]
    for row in new:
        row.setdefault('taxonomy', {'primary': None})
        row.setdefault('basic_category', None)
    buildings = [{'id': 'b', 'bbox': box, 'class': None, 'is_underground': False, 'geometry': rectangle(1, 1, 20, 20)}]
    base = [{'id': 'w', 'bbox': box, 'subtype': 'water', 'class': 'lake', 'geometry': rectangle(60, 60, 90, 90)}]
    files = [
        overture(tmp_path / f'{n}.parquet', rows, big_endian) for n, rows in enumerate((places, new, buildings, base))
    ]
    find_landmarks(place_set(tmp_path), Maps(overture=tuple(files)), tmp_path / 'landmarks')
    rows = {row['landmark_id']: row for row in found_in(tmp_path / 'landmarks')}
    assert {k: v['kind'] for k, v in rows.items()} == {
        'overture/old': 'stadium',
        'overture/new': 'petrol station',
        'overture/shut': 'castle',
        'overture/tax': 'lighthouse',
        'overture/b': 'building',
        'overture/w': 'lake',
    }
    assert rows['overture/shut']['reason'] == 'gone, or not yet built' and rows['overture/old']['name'] == 'Rialto'


def test_objects_of_maps_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """Rows without a shape, off the earth or of other types than Overture's cost themselves alone."""
    west, south, east, north = TILE.bounds()
    box = {'xmin': west, 'ymin': south, 'xmax': east, 'ymax': north}
    shape = shapely.to_wkb(shapely.Point(at(50, 50)))
    rows = [
        {'id': 'a', 'names': 'Rialto', 'class': 'stadium', 'bbox': box, 'geometry': g} for g in (shape, b'no', None)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'o.parquet')
    places = [shapely.Point(at(50, 50)), None, shapely.Point(500, 0)]
    own = gpd.GeoDataFrame({'kind': ['kiln'] * 3}, geometry=places, crs='OGC:CRS84')
    own.to_parquet(tmp_path / 'own.parquet')
    maps = Maps(overture=(tmp_path / 'o.parquet',), own=(tmp_path / 'own.parquet',))
    done = find_landmarks(place_set(tmp_path), maps, tmp_path / 'landmarks')
    assert done.unread == {'no geometry': 3, "columns of other types than Overture's": 1, 'not on earth': 1}
    assert [r['kind'] for r in found_in(tmp_path / 'landmarks')] == ['kiln']


@pytest.mark.realdata
def test_real_extracts_and_overture_files_are_read(realdata: Path, tmp_path: Path) -> None:
    """Baltimore's stadiums and piers; places without GeoParquet metadata, buildings in big-endian WKB."""
    rows = []
    for number, (lon, lat) in enumerate([(-76.5780, 39.2888), (-76.6, 39.27), (7.39437, 50.34645)]):
        (tmp_path / f'{number}.png').write_bytes(picture(number, (400, 400)))
        rows.append({'image': f'{number}.png', 'lon': lon, 'lat': lat, 'gsd_m': 2.0})
    (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    import_captions(tmp_path / 't.jsonl', tmp_path / 'set', ImportOptions(uncaptioned=True))
    osm = realdata / 'osm'
    maps = Maps((osm / 'baltimore.osm.pbf',), (osm / 'overture',))
    find_landmarks(CaptionSet(tmp_path / 'set'), maps, tmp_path / 'landmarks')
    kinds = [
        {r['kind'] for r in found_in(tmp_path / 'landmarks') if r['image'] == n and r['visible']} for n in range(3)
    ]
    assert 'stadium' in kinds[0] and 'building' in kinds[2] and len(kinds[1]) > 3


@pytest.mark.realdata
def test_landmarks_lie_where_they_are_seen_on_real_imagery(realdata: Path, tmp_path: Path) -> None:
    """Checked by eye: beach in the south-west, parking at the top, water tower at the bottom left, a road across."""
    folder = realdata / 'landmarks_portugal'
    rows = []
    for path in sorted((folder / 'tiles').glob('*.jpg')):
        x, y, z = map(int, path.stem.split('-'))
        side = 2**z
        lat = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * (y + 0.5) / side))))
        gsd = 156543.03392804097 * math.cos(math.radians(lat)) / side
        rows.append(
            {'image': str(path), 'image_id': f'{x}-{y}', 'lon': (x + 0.5) / side * 360 - 180, 'lat': lat, 'gsd_m': gsd}
        )
    (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    import_captions(tmp_path / 't.jsonl', tmp_path / 'set', ImportOptions(uncaptioned=True))
    captions = CaptionSet(tmp_path / 'set')
    find_landmarks(captions, Maps(own=(folder / 'labels.geojson',)), tmp_path / 'landmarks')
    visible = [r for r in found_in(tmp_path / 'landmarks') if r['visible']]
    where = {(r['image_id'], r['kind'], r['name']): r['position'] for r in visible}
    assert where['62093-50162', 'beach', 'Praia da Aguda'] == 'south-west'
    assert where['62093-50163', 'parking lot', None] == 'north'
    assert where['62094-50163', 'water tower', None] == 'south-west'
    assert where['62094-50163', 'road', 'Estrada da Aguda'] == 'centre'
    assert not {r['kind'] for r in visible} & {'coastline', 'boundary', 'protected area'}
    assert sum(r['kind'] == 'beach' and r['image_id'] == '62093-50162' for r in visible) == 1


@pytest.mark.parametrize(
    ('name', 'content', 'option', 'sentence'),
    [
        ('x.osm.pbf', b'cut', '--osm', 'cannot be read behind object'),
        ('x.parquet', b'PAR1', '--overture', 'cannot be read'),
        ('x.geojson', b'{"type": "FeatureCollection", "features": []}', '--own', 'tells no kinds'),
        ('x.geojson', b'<xml/>', '--own', 'cannot be read'),
    ],
)
def test_maps_that_cannot_be_read_are_one_sentence(
    name: str, content: bytes, option: str, sentence: str, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    """It names the file, and nothing is left behind."""
    place_set(tmp_path)
    if content == b'cut':
        whole = extract(tmp_path / 'whole.osm.pbf').read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / name).write_bytes(content)
    code, said = command('captions', 'landmarks', tmp_path / 'set', tmp_path / 'out', option, tmp_path / name)
    assert code == 1 and sentence in said and name in said and 'Traceback' not in said
    assert not list((tmp_path / 'out').glob('*.part')) and not (tmp_path / 'out' / 'landmarks.json').exists()


def test_kinds_of_points_have_sizes_or_are_not_seen() -> None:
    """A school that is a point may be a door or a campus."""
    school = MapObject('a', Kind('school', 'amenity=school'), None, shapely.Point(at(50, 50)))
    tree = thing('b', 'natural=tree', shapely.Point(at(20, 20)))
    reasons = {r.landmark_id: r.reason for r in landmarks_of(TILE, [school, tree])}
    assert reasons == {'a': 'a point of no known size', 'b': None}
