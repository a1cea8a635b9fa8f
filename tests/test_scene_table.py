"""Many scenes at a time: little memory for each, and the same tables whatever is written together."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.scenes import table
from grafalign.scenes.footprints import Footprints
from grafalign.scenes.scene import scene_of
from grafalign.scenes.scene_table import SceneTable, scene_table
from grafalign.scenes.table import items_to_parquet, read_items

Item = dict[str, Any]


def sheet(number: int, outline: int, day: int = 1) -> Item:
    """An item as large as those of Sentinel-2: some fifty assets with addresses and bands."""
    west, south = outline % 300 - 150, outline // 300 - 40
    corners = np.array([(0, 0), (1.1, 0.003), (1.09, 1.02), (0.01, 1.0)]) + np.array([west, south])
    bands = [{'name': f'B{b:02d}', 'eo:common_name': 'red', 'gsd': 10, 'raster:scale': 1e-4} for b in range(12)]
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'id': f'S2B_MSIL2A_20210701T100559_N0300_R022_T33UUP_20210701T{number:06d}',
        'collection': 'sentinel-2-l2a',
        'geometry': json.loads(shapely.to_geojson(shapely.Polygon(corners))),
        'properties': {'datetime': f'2021-07-{day:02d}T10:05:59.024Z', 'eo:cloud_cover': number % 100 / 3},
        'assets': {
            f'asset{a}': {'href': f'https://example.com/sheets/{number}/{a}.tif', 'bands': bands} for a in range(50)
        },
        'links': [],
    }


def test_a_candidate_costs_less_than_half_a_kilobyte_of_memory() -> None:
    """Columns and boxes of scenes that share no outline, the dearest case, counted; their items stay on disk."""
    count = 3_000
    scenes = scene_table(scene_of(sheet(number, number)) for number in range(count))
    arrays = [value for value in vars(Footprints(scenes)).values() if isinstance(value, np.ndarray)]
    assert len(scenes.outlines()) == count
    assert scenes.columns.nbytes + sum(array.nbytes for array in arrays) < 500 * count


def test_scenes_that_were_kept_are_the_same_scenes(tmp_path: Path) -> None:
    """All that is known of a scene, its whole item included, comes back from the two files."""
    items = [sheet(number, number % 7, 1 + number % 3) for number in range(40)]
    items[3]['properties'].pop('eo:cloud_cover')
    items[5]['properties']['s2:processing_baseline'] = '05.09'
    before = scene_table(scene_of(item) for item in items)
    before.write(tmp_path / 'table.parquet', tmp_path / 'table.items')
    after = SceneTable.read(tmp_path / 'table.parquet', tmp_path / 'table.items')
    assert len(after.outlines()) == 7 and list(after) == list(before)
    assert [s.item_id for s in after] == [
        s.item_id for s in sorted(map(scene_of, items), key=lambda s: (s.collection, s.when, s.item_id))
    ]
    assert sorted(s.item['id'] for s in after) == sorted(item['id'] for item in items)
    assert {s.item_id: s.item for s in after} == {item['id']: item for item in items}


_VALUES = st.one_of(st.integers(-5, 5), st.floats(-2, 2), st.text('ab', max_size=2), st.booleans())
_PROPERTIES = st.dictionaries(
    st.sampled_from(['a', 'b', 'c']),
    st.one_of(_VALUES, st.lists(_VALUES, max_size=2), st.dictionaries(st.sampled_from('xy'), _VALUES, max_size=2)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_PROPERTIES, min_size=1, max_size=7), st.integers(1, 3))
def test_a_table_written_in_parts_holds_the_items_of_one_written_at_once(
    properties: list[dict[str, Any]], at_once: int
) -> None:
    """Whatever keys and types differ between the parts: a column that only one part has is null in the others."""
    items = [{**sheet(n, n), 'assets': {'a': {'href': '.'}}} for n in range(len(properties))]
    for item, more in zip(items, properties, strict=True):
        item['properties'] |= more
    whole = items_to_parquet(items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, '_BATCH', at_once)
        parts = items_to_parquet(items)
    assert _read(parts) == _read(whole)


def _read(content: bytes) -> list[Item]:
    with tempfile.NamedTemporaryFile(suffix='.parquet') as file:
        Path(file.name).write_bytes(content)
        return list(read_items(Path(file.name)))
