"""LUCAS, the land survey of the European Union, in the harmonised layout (lucas_harmo_uf.csv, 2006-2018).

One row is one visit of a point, with up to four photos to the north, east, south and west, whose addresses are in
file_path_gisco_north and so on: each becomes a photo of its own with that heading. (The fifth, of the point itself,
looks down and is left out.) The place is the surveyor's GPS: gps_lat, gps_long with gps_ew (East or West) and gps_prec,
the mean error in metres; 88.888888 and 8888 mean that there was none. `survey_date` is dd/mm/yy. Source: d'Andrimont et
al., "Harmonised LUCAS in-situ land cover and use database", Scientific Data 7, 352 (2020),
doi:10.1038/s41597-020-00675-z, and the table at
https://developers.google.com/earth-engine/datasets/catalog/JRC_LUCAS_HARMO_THLOC_V1.

With `photos.root` the local copies ROOT/YEAR/COUNTRY/AAA/BBB/FILE.jpg are taken instead of the addresses.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.photos.batches import Form, read_batches
from grafalign.photos.layouts.common import choose_from, column_or_none
from grafalign.photos.raw import Raw, Where
from grafalign.photos.values import numbers, texts

HEADINGS = {'north': 0.0, 'east': 90.0, 'south': 180.0, 'west': 270.0}
LICENCE = 'CC-BY-4.0'
_NEEDED = ('point_id', 'gps_lat', 'gps_long')
_WANTED = ('year', 'survey_date', 'gps_ew', 'gps_prec', *(f'file_path_gisco_{d}' for d in HEADINGS))


def read(files: list[str], where: Where) -> Iterator[Raw]:
    """Stream the photos, those of one direction after those of the other within a batch."""
    for path in files:
        names: dict[str, str] = {}

        def choose(found: list[str], path: str = path, names: dict[str, str] = names) -> list[str]:
            names.update({n.lower(): n for n in found})  # the tables of single years are in capitals
            picked = choose_from(path, 'lucas', _NEEDED, _WANTED)(list(names))
            return [names[n] for n in picked]

        for batch in read_batches(path, choose, Form() if '.csv' in path.lower() else None):
            table = batch.table.rename_columns([n.lower() for n in batch.table.column_names])
            yield from _directions(table, where, batch.malformed)


def _directions(table: pa.Table, where: Where, malformed: list[tuple[str, str]]) -> Iterator[Raw]:
    visit = pc.binary_join_element_wise(
        texts(table['point_id']), pc.fill_null(texts(column_or_none(table, 'year')), ''), '-'
    )
    lon, lat, error = (numbers(column_or_none(table, n)) for n in ('gps_long', 'gps_lat', 'gps_prec'))
    western = pc.fill_null(pc.starts_with(pc.utf8_lower(texts(column_or_none(table, 'gps_ew'))), 'w'), False)
    lon = np.where(western.to_numpy(zero_copy_only=False), -np.abs(lon), lon)
    none = (np.abs(lat - 88.888888) < 1e-5) | (np.abs(np.abs(lon) - 88.888888) < 1e-5)
    lon, lat = np.where(none, np.nan, lon), np.where(none, np.nan, lat)
    day = texts(column_or_none(table, 'survey_date'))
    day = pc.replace_substring_regex(day, r'^(\d{2})/(\d{2})/(\d{2})$', r'20\3-\2-\1')
    day = pc.replace_substring_regex(day, r'^(\d{2})/(\d{2})/(\d{4})$', r'\3-\2-\1')
    columns = {
        'photo_id': visit,
        'lon': pa.array(lon),
        'lat': pa.array(lat),
        'accuracy_m': pa.array(np.where(error >= 8888, np.nan, error)),
        'taken_at': day,
        'licence': pa.array([LICENCE] * len(table), pa.string()),
        'source': pa.array(['lucas'] * len(table), pa.string()),
    }
    rows = pa.table(columns)
    photos = []
    empty = np.ones(len(table), dtype=bool)
    for direction, heading in HEADINGS.items():
        address = texts(column_or_none(table, f'file_path_gisco_{direction}'))
        taken = pc.fill_null(pc.match_substring_regex(address, r'(?i)\.jpe?g$'), False)  # some are only a folder
        empty &= ~taken.to_numpy(zero_copy_only=False)
        if where.given:
            address = pc.replace_substring_regex(address, r'^.*?((?:[^/]+/){0,4}[^/]+)$', r'\1')
        mine = rows.filter(taken)
        names = pc.binary_join_element_wise(mine['photo_id'], direction[0].upper(), '-')
        mine = mine.set_column(0, 'photo_id', names)
        mine = mine.append_column('uri', address.filter(taken))
        photos.append(mine.append_column('heading_deg', pa.array(np.full(len(mine), heading))))
    made = pa.concat_tables(photos)
    yield Raw({n: made[n] for n in made.column_names}, len(made), where.root, malformed)
    lost = rows.filter(pa.array(empty))
    if len(lost):
        problem = pa.array(['no photo to north, east, south or west'] * len(lost), pa.string())
        yield Raw({**{n: lost[n] for n in lost.column_names}, 'problem': problem}, len(lost), None)
