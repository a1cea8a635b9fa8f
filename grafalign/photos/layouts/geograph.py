"""Geograph Britain and Ireland: the dumps gridimage_base, gridimage_geo and gridimage_size (.tsv.gz).

Tab-separated with a header and no quotes, joined by `gridimage_id`. Sources: https://data.geograph.org.uk/dumps/,
https://www.geograph.org.uk/article/Geograph-Image-Metadata and the code of the site,
https://github.com/geograph-project.

Where the photographer stood is `viewpoint_eastings`, `viewpoint_northings` on the British (reference_index 1,
EPSG:27700) or Irish grid (2, EPSG:29903), the south-west corner of a square whose side follows from the figures of the
grid reference (`viewpoint_grlen`: 4 is 1 km, 6 is 100 m, 8 is 10 m, 10 is 1 m; `use6fig` makes it 100 m at best): the
photo stands in the middle of the square and its error is half the diagonal. Where that is not told the place is that of
the subject (wgs84_lat, wgs84_long), with the error of its own square (`natgrlen`) and at least `SUBJECT_M`, our choice.
`view_direction` is in degrees, -1 for unknown. Licence: CC-BY-SA-2.0.

The dumps hold no addresses of images, as these have a part that cannot be guessed: give a column `hash` (as in the
dumps that Geograph makes on request) or `url`, or set `photos.root` to a folder of ID.jpg.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyproj

from grafalign.errors import InputError
from grafalign.photos.batches import Form, read_batches
from grafalign.photos.layouts.common import choose_from, column_or_none, find_file, pick_file
from grafalign.photos.raw import Raw, Where
from grafalign.photos.values import Column, Floats, numbers, texts

LICENCE = 'CC-BY-SA-2.0'
GRIDS = {1: 'EPSG:27700', 2: 'EPSG:29903'}
SUBJECT_M = 250.0
"""How far a photographer may stand from a subject, where only that is known."""
_FORM = Form('\t', quoted=False)
_BASE = ('gridimage_id', 'wgs84_lat', 'wgs84_long')
_BASE_MORE = ('realname', 'imagetaken', 'reference_index', 'hash', 'url')
_GEO = ('viewpoint_eastings', 'viewpoint_northings', 'viewpoint_grlen', 'natgrlen', 'view_direction', 'use6fig')
_SIZE = ('width', 'height')


def read(files: list[str], where: Where) -> Iterator[Raw]:
    """Stream the photos."""
    base = pick_file(files, 'gridimage_base', 'geograph')
    beside = [
        _index(find_file(files, 'gridimage_geo'), _GEO),
        _index(find_file(files, 'gridimage_size'), _SIZE),
    ]
    pick = choose_from(base, 'geograph', _BASE, _BASE_MORE)

    def choose(names: list[str]) -> list[str]:
        chosen: list[str] = pick(names)
        if not where.given and not {'hash', 'url'} & set(chosen):
            raise InputError(
                f'{base} has no column hash or url, and the dumps of Geograph do not tell where the images are; set '
                'photos.root to a folder of ID.jpg, or add one of these columns.'
            )
        return chosen

    for batch in read_batches(base, choose, _FORM):
        yield Raw(_columns(batch.table, beside, where), len(batch.table), where.root, batch.malformed)


Index = tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]


def _index(path: str | None, wanted: tuple[str, ...]) -> Index:
    """Numbers of a table beside the base, sorted by id; none where there is no table."""
    ids: list[npt.NDArray[np.int64]] = []
    parts: dict[str, list[npt.NDArray[np.float32]]] = {n: [] for n in wanted}
    batches = read_batches(path, choose_from(path, 'geograph', ('gridimage_id',), wanted), _FORM) if path else iter(())
    for batch in batches:
        number = numbers(batch.table['gridimage_id'])
        good = ~np.isnan(number)
        ids.append(number[good].astype(np.int64))
        for name in wanted:
            parts[name].append(numbers(column_or_none(batch.table, name))[good].astype(np.float32))  # exact to 2^24
    whole = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    order = np.argsort(whole, kind='stable')
    return whole[order], {n: np.concatenate(p)[order] for n, p in parts.items() if p}


def _look_up(ids: Floats, index: Index, name: str) -> Floats:
    known, columns = index
    if not len(known):
        return np.full(len(ids), np.nan)
    wanted = np.where(np.isnan(ids), -1, ids).astype(np.int64)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, columns[name][at].astype(float), np.nan)


def _columns(table: pa.Table, beside: list[Index], where: Where) -> dict[str, Column]:
    number = numbers(table['gridimage_id'])
    geo = {n: _look_up(number, beside[0], n) for n in _GEO}
    lon, lat, error = _places(table, geo)
    heading = geo['view_direction']
    name = texts(table['gridimage_id'])
    local = pc.binary_join_element_wise(name, 'jpg', '.')
    return {
        'photo_id': name,
        'uri': local if where.given else pc.coalesce(texts(column_or_none(table, 'url')), _addresses(table, number)),
        'lon': pa.array(lon),
        'lat': pa.array(lat),
        'accuracy_m': pa.array(error),
        'heading_deg': pa.array(np.where((heading >= 0) & (heading <= 360), heading, np.nan)),
        'taken_at': pc.if_else(
            pc.match_substring_regex(texts(column_or_none(table, 'imagetaken')), r'^0000|-00'),
            None,
            texts(column_or_none(table, 'imagetaken')),
        ),
        'licence': pa.array([LICENCE] * len(table), pa.string()),
        'author': column_or_none(table, 'realname'),
        'source': pa.array(['geograph'] * len(table), pa.string()),
        'width': pa.array(_look_up(number, beside[1], 'width')),
        'height': pa.array(_look_up(number, beside[1], 'height')),
    }


def _places(table: pa.Table, geo: dict[str, Floats]) -> tuple[Floats, Floats, Floats]:
    """Longitude, latitude and error in metres."""
    side = _side_m(geo['natgrlen'])
    lon, lat = numbers(table['wgs84_long']), numbers(table['wgs84_lat'])
    error = np.fmax(side * np.sqrt(0.5), SUBJECT_M)
    grlen = np.where(geo['use6fig'] > 0, np.minimum(geo['viewpoint_grlen'], 6), geo['viewpoint_grlen'])
    side = _side_m(grlen)
    stated = (geo['viewpoint_eastings'] > 0) & (geo['viewpoint_northings'] > 0) & ~np.isnan(side)
    grid = numbers(column_or_none(table, 'reference_index'))
    for reference, crs in GRIDS.items():
        here = stated & (grid == reference)
        if here.any():
            corner = [
                np.floor(geo[n][here] / side[here]) * side[here] for n in ('viewpoint_eastings', 'viewpoint_northings')
            ]
            middle = [c + side[here] / 2 for c in corner]
            moved = pyproj.Transformer.from_crs(crs, 'EPSG:4326', always_xy=True).transform(*middle)
            lon[here], lat[here] = moved
            error[here] = side[here] * np.sqrt(0.5)
    return lon, lat, error


def _side_m(figures: Floats) -> Floats:
    """Side of the square that a grid reference of so many figures names."""
    return np.where((figures >= 2) & (figures <= 10), 10.0 ** (5 - figures / 2), np.nan)


def _addresses(table: pa.Table, number: Floats) -> Column:
    """Addresses of the images from id and hash, as the site makes them: /geophotos/YZ/AB/CD/ID_HASH.jpg."""
    ids = np.where(np.isnan(number), 0, number).astype(np.int64)
    parts = [
        pa.array([f'{v:02d}' for v in p.tolist()])
        for p in (ids // 1_000_000, ids % 1_000_000 // 10_000, ids % 10_000 // 100)
    ]
    stem = pc.binary_join_element_wise(
        pa.array([f'{v:06d}' for v in ids.tolist()]), texts(column_or_none(table, 'hash')), '_'
    )
    old = pc.binary_join_element_wise('https://s0.geograph.org.uk/photos', *parts[1:], stem, '/')
    new = pc.binary_join_element_wise('https://s0.geograph.org.uk/geophotos', *parts, stem, '/')
    return pc.binary_join_element_wise(pc.if_else(pa.array(ids < 1_000_000), old, new), pa.scalar('.jpg'), '')
