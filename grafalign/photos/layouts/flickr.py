"""Photo lists as the API of Flickr answers.

The call is flickr.photos.search with `extras=geo,date_taken,license,owner_name,url_l,media`.
Either the JSON answers themselves ({"photos": {"photo": [...]}}, one page a file), or their photo objects one a line
(JSONL), or a CSV with the same names. Numbers come as text. A photo without a geotag has latitude, longitude and
accuracy 0. Sources: https://www.flickr.com/services/api/flickr.photos.search.html,
.../flickr.photos.licenses.getInfo.html and https://www.flickr.com/services/api/misc.dates.html (granularity: 0 exact, 4
month, 6 year, 8 circa) and misc.urls.html.

The largest of url_l (1024 px), url_c (800 px), url_z (640 px), url_o (the original) that is there is taken, or else the
1024-pixel address is put together from server, id and secret. Times are the camera's, without zone, and taken for UTC.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.photos.batches import read_batches
from grafalign.photos.layouts.common import choose_from, column_or_none, flickr_accuracy_m, where_true
from grafalign.photos.raw import Raw, Where
from grafalign.photos.values import Column, numbers, texts, truths

LICENCES = {
    '0': 'All-Rights-Reserved',
    '1': 'CC-BY-NC-SA-2.0',
    '2': 'CC-BY-NC-2.0',
    '3': 'CC-BY-NC-ND-2.0',
    '4': 'CC-BY-2.0',
    '5': 'CC-BY-SA-2.0',
    '6': 'CC-BY-ND-2.0',
    '7': 'No-Known-Copyright',
    '8': 'US-Government-Work',
    '9': 'CC0-1.0',
    '10': 'PDM-1.0',
    '11': 'CC-BY-4.0',
    '12': 'CC-BY-SA-4.0',
    '13': 'CC-BY-ND-4.0',
    '14': 'CC-BY-NC-4.0',
    '15': 'CC-BY-NC-SA-4.0',
    '16': 'CC-BY-NC-ND-4.0',
}
_SIZES = ('l', 'c', 'z', 'o')
_WANTED = (
    *('owner', 'ownername', 'accuracy', 'license', 'datetaken', 'datetakenunknown', 'datetakengranularity', 'media'),
    *('server', 'secret'),
    *(f'{what}_{size}' for size in _SIZES for what in ('url', 'width', 'height')),
)


def read(files: list[str], where: Where) -> Iterator[Raw]:
    """Stream the photos."""
    for path in files:
        for batch in read_batches(path, choose_from(path, 'flickr', ('id', 'latitude', 'longitude'), _WANTED)):
            columns = _columns(batch.table, where) if len(batch.table) else {}
            yield Raw(columns, len(batch.table), where.root, batch.malformed)


def _columns(table: pa.Table, where: Where) -> dict[str, Column]:
    photo_id = texts(table['id'])
    uri, width, height = _largest(table)
    stem = pc.binary_join_element_wise(photo_id, texts(column_or_none(table, 'secret')), '_')
    built = pc.binary_join_element_wise(
        'https://live.staticflickr.com',
        texts(column_or_none(table, 'server')),
        pc.binary_join_element_wise(stem, 'b.jpg', '_'),
        '/',
    )
    level = numbers(column_or_none(table, 'accuracy'))
    lon, lat = numbers(table['longitude']), numbers(table['latitude'])
    untagged = (lon == 0) & (lat == 0) & ((level == 0) | np.isnan(level))
    vague = numbers(column_or_none(table, 'datetakengranularity')) >= 4
    vague |= truths(column_or_none(table, 'datetakenunknown'))
    codes = texts(column_or_none(table, 'license'))
    names = pc.index_in(codes, value_set=pa.array(list(LICENCES)))
    licence = pc.coalesce(pa.array(list(LICENCES.values())).take(names), codes)
    media = pc.fill_null(pc.equal(texts(column_or_none(table, 'media')), 'video'), False)
    return {
        'photo_id': photo_id,
        'uri': pc.binary_join_element_wise(photo_id, 'jpg', '.') if where.given else pc.coalesce(uri, built),
        'lon': pa.array(np.where(untagged, np.nan, lon)),
        'lat': pa.array(np.where(untagged, np.nan, lat)),
        'accuracy_m': flickr_accuracy_m(column_or_none(table, 'accuracy')),
        'taken_at': pc.if_else(pa.array(vague), None, texts(column_or_none(table, 'datetaken'))),
        'licence': licence,
        'author': pc.coalesce(texts(column_or_none(table, 'ownername')), texts(column_or_none(table, 'owner'))),
        'source': pa.array(['flickr'] * len(table), pa.string()),
        'width': width,
        'height': height,
        'problem': where_true(media.to_numpy(zero_copy_only=False), 'video'),
    }


def _largest(table: pa.Table) -> tuple[Column, Column, Column]:
    """Address, width and height of the first size that a photo has."""
    uri, width, height = pa.nulls(len(table), pa.string()), *(np.full(len(table), np.nan) for _ in range(2))
    for size in _SIZES:
        address = texts(column_or_none(table, f'url_{size}'))
        fresh = pc.and_(pc.is_null(uri), pc.is_valid(address)).to_numpy(zero_copy_only=False)
        uri = pc.coalesce(uri, address)
        width = np.where(fresh, numbers(column_or_none(table, f'width_{size}')), width)
        height = np.where(fresh, numbers(column_or_none(table, f'height_{size}')), height)
    return uri, pa.array(width), pa.array(height)
