"""Mapillary images as its API v4 describes them.

Either the answers of https://graph.mapillary.com/images?fields=... ({"data": [...]}), or their objects one a line
(JSONL), or the GeoJSON of the Python SDK and of the vector tiles (`captured_at`, `compass_angle`, `is_pano` as
properties), or a flat CSV or Parquet with the same names and `lon`, `lat`. Source:
https://www.mapillary.com/developer/api-documentation, "Image", and https://mapillary.github.io/mapillary-python-sdk.

`computed_geometry` (after structure from motion) comes before `geometry` (the phone's GPS), and
`computed_compass_angle` before `compass_angle` unless it is exactly 0, which stands for not computed. No error of the
position is published. Panoramas (`is_pano`, or a spherical camera) are rejected: they look everywhere. Licence:
CC-BY-SA-4.0. The addresses (thumb_2048_url, thumb_original_url, thumb_1024_url) expire; with `photos.root` ROOT/ID.jpg
is taken instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.errors import InputError
from grafalign.photos.batches import read_batches
from grafalign.photos.layouts.common import choose_from, column_or_none, where_true
from grafalign.photos.raw import Raw, Where
from grafalign.photos.values import Column, numbers, texts, truths

LICENCE = 'CC-BY-SA-4.0'
_ADDRESSES = ('thumb_2048_url', 'thumb_original_url', 'thumb_1024_url')
_PLACES = (('computed_geometry.lon', 'computed_geometry.lat'), ('geometry.lon', 'geometry.lat'), ('lon', 'lat'))
_AUTHORS = ('creator.username', 'creator_username', 'creator.id', 'creator_id')
_WANTED = (
    *['captured_at', 'compass_angle', 'computed_compass_angle', 'is_pano', 'camera_type', 'width', 'height'],
    *_AUTHORS,
    *_ADDRESSES,
    *(n for pair in _PLACES for n in pair),
)
_SPHERICAL = pa.array(['spherical', 'equirectangular'])


def read(files: list[str], where: Where) -> Iterator[Raw]:
    """Stream the photos."""
    for path in files:
        pick = choose_from(path, 'mapillary', ('id',), _WANTED)

        def choose(names: list[str], path: str = path, pick: Any = pick) -> list[str]:
            chosen: list[str] = pick(names)
            if not where.given and not set(_ADDRESSES) & set(chosen):
                raise InputError(
                    f'{path} has no column {", ".join(_ADDRESSES)}; ask the API for that field, or set photos.root '
                    'to a folder of ID.jpg.'
                )
            if not any(pair[0] in chosen for pair in _PLACES):
                raise InputError(f'{path} has neither computed_geometry nor geometry; ask the API for that field.')
            return chosen

        for batch in read_batches(path, choose):
            columns = _columns(batch.table, where) if len(batch.table) else {}
            yield Raw(columns, len(batch.table), where.root, batch.malformed)


def _columns(table: pa.Table, where: Where) -> dict[str, Column]:
    photo_id = texts(table['id'])
    addresses = pc.coalesce(*(texts(column_or_none(table, n)) for n in _ADDRESSES))
    lon, lat = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for names in _PLACES:
        x, y = (numbers(column_or_none(table, n)) for n in names)
        fresh = np.isnan(lon) & ~np.isnan(x) & ~np.isnan(y)
        lon, lat = np.where(fresh, x, lon), np.where(fresh, y, lat)
    computed, stated = (numbers(column_or_none(table, n)) for n in ('computed_compass_angle', 'compass_angle'))
    heading = np.where(np.isnan(computed) | (computed == 0), stated, computed)
    camera = pc.is_in(pc.utf8_lower(texts(column_or_none(table, 'camera_type'))), value_set=_SPHERICAL)
    panorama = truths(column_or_none(table, 'is_pano')) | camera.to_numpy(zero_copy_only=False)
    return {
        'photo_id': photo_id,
        'uri': pc.binary_join_element_wise(photo_id, 'jpg', '.') if where.given else addresses,
        'lon': pa.array(lon),
        'lat': pa.array(lat),
        'heading_deg': pa.array(np.where(heading < 0, np.nan, heading)),
        'taken_at': column_or_none(table, 'captured_at'),
        'licence': pa.array([LICENCE] * len(table), pa.string()),
        'author': pc.coalesce(*(texts(column_or_none(table, n)) for n in _AUTHORS)),
        'source': pa.array(['mapillary'] * len(table), pa.string()),
        'width': column_or_none(table, 'width'),
        'height': column_or_none(table, 'height'),
        'problem': where_true(panorama, 'panorama'),
    }
