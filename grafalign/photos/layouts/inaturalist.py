"""The iNaturalist Open Dataset: photos.csv, observations.csv and observers.csv (.gz) of s3://inaturalist-open-data.

Tab-separated in spite of the name, with a header and no quotes. A photo's place and day are those of its observation
(`observation_uuid`), its author is the observer; `positional_accuracy` is in metres; `observed_on` is a day. Sources:
https://github.com/inaturalist/inaturalist-open-data, Metadata/README.md and Metadata/structure.sql.

The observations are held in memory, sorted and packed to 32 bytes each (uuid as two 64-bit numbers, degrees as 1e-7
parts), and the photos stream over them: 200 million observations take 6.4 GB. Photos are addressed in their medium size
(500 px, .../photos/ID/medium.EXT), and `width` and `height` are of that size; with `photos.root`
ROOT/photos/ID/medium.EXT. Licences of iNaturalist are those of Creative Commons, version 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.photos.batches import Form, read_batches
from grafalign.photos.layouts.common import choose_from, column_or_none, find_file, pick_file
from grafalign.photos.raw import Raw, Where
from grafalign.photos.values import Column, numbers, texts, times

BUCKET = 'https://inaturalist-open-data.s3.amazonaws.com'
MEDIUM_PX = 500
_FORM = Form('\t', quoted=False)
_UNKNOWN = np.iinfo(np.int32).min
_HEX = np.full(256, 255, dtype=np.uint8)
_HEX[np.frombuffer(b'0123456789', np.uint8)] = np.arange(10)
_HEX[np.frombuffer(b'abcdef', np.uint8)] = np.arange(10, 16)
_HEX[np.frombuffer(b'ABCDEF', np.uint8)] = np.arange(10, 16)
_OBSERVATIONS = ('observation_uuid', 'latitude', 'longitude')
_PHOTOS = ('photo_id', 'observation_uuid', 'extension')
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Observations:
    """Where and when, sorted by the first half of the uuid."""

    high: Words
    low: Words
    lon: npt.NDArray[np.int32]
    lat: npt.NDArray[np.int32]
    accuracy: npt.NDArray[np.int32]
    day: npt.NDArray[np.int32]

    def find(self, high: Words, low: Words) -> npt.NDArray[np.int64]:
        """Row of every uuid, or -1."""
        if not len(self.high):
            return np.full(len(high), -1, dtype=np.int64)
        row = np.searchsorted(self.high, high)
        last = len(self.high) - 1
        at = np.minimum(row, last)
        while (open_ := (self.high[at] == high) & (self.low[at] != low) & (row < last)).any():
            row = row + open_  # two uuids with the same first half
            at = np.minimum(row, last)
        return np.where((self.high[at] == high) & (self.low[at] == low), at, -1)


def read(files: list[str], where: Where) -> Iterator[Raw]:
    """Stream the photos."""
    photos = pick_file(files, 'photos', 'inaturalist')
    observations = pick_file(files, 'observations', 'inaturalist')
    observers = find_file(files, 'observers')
    index = read_observations(observations)
    people = _read_observers(observers) if observers is not None else None
    wanted = ('observer_id', 'license', 'width', 'height')
    for batch in read_batches(photos, choose_from(photos, 'inaturalist', _PHOTOS, wanted), _FORM):
        yield Raw(_columns(batch.table, index, people, where), len(batch.table), where.root, batch.malformed)


def read_observations(path: str) -> Observations:
    """Pack a table of observations; rows without a uuid or a place are left out."""
    parts: list[list[Any]] = [[] for _ in range(6)]
    wanted = ('positional_accuracy', 'observed_on')
    for batch in read_batches(path, choose_from(path, 'inaturalist', _OBSERVATIONS, wanted), _FORM):
        table = batch.table
        high, low, good = uuid_words(texts(table['observation_uuid']))
        lon, lat = numbers(table['longitude']), numbers(table['latitude'])
        good &= (np.abs(lon) <= 180) & (np.abs(lat) <= 90)
        error = numbers(column_or_none(table, 'positional_accuracy'))
        packed = np.where((error >= 0) & (error < 2**31), error, _UNKNOWN).astype(np.int32)
        when = times(column_or_none(table, 'observed_on'))
        day = pc.fill_null(pc.floor_temporal(when, unit='day').cast(pa.int64()), 0).to_numpy() // 86_400_000_000
        day = np.where(pc.is_valid(when).to_numpy(zero_copy_only=False), day, _UNKNOWN).astype(np.int32)
        east, north = (np.round(np.where(good, v, 0) * 1e7).astype(np.int32) for v in (lon, lat))
        columns: list[Any] = [high, low, east, north, packed, day]
        for part, column in zip(parts, columns, strict=True):
            part.append(column[good])
    whole: list[Any] = [np.concatenate(p) if p else np.empty(0, dtype=np.int32) for p in parts]
    order = np.lexsort((whole[1], whole[0]))
    return Observations(*(column[order] for column in whole))


def uuid_words(uuids: Column) -> tuple[Words, Words, npt.NDArray[np.bool_]]:
    """Uuids as two 64-bit numbers each, and which of them are any."""
    bare = pc.replace_substring(uuids, '-', '')
    good = pc.fill_null(pc.match_substring_regex(bare, r'^[0-9A-Fa-f]{32}$'), False)
    filled = pc.if_else(good, bare, '0' * 32)
    nibbles = _HEX[np.frombuffer(''.join(filled.to_pylist()).encode(), np.uint8)].reshape(-1, 16, 2)
    words = ((nibbles[:, :, 0] << 4) | nibbles[:, :, 1]).view('>u8').astype(np.uint64)
    return words[:, 0], words[:, 1], good.to_numpy(zero_copy_only=False)


def _read_observers(path: str) -> tuple[npt.NDArray[np.int64], Any]:
    """Sorted ids and names, or logins where a name is not told."""
    ids, names = [], []
    for batch in read_batches(path, choose_from(path, 'inaturalist', ('observer_id', 'login'), ('name',)), _FORM):
        number = numbers(batch.table['observer_id'])
        good = ~np.isnan(number)
        ids.append(number[good].astype(np.int64))
        name = pc.coalesce(texts(column_or_none(batch.table, 'name')), texts(batch.table['login']))
        names.append(name.filter(pa.array(good)))
    whole = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    order = np.argsort(whole, kind='stable')
    people = pa.chunked_array(names, pa.string()).combine_chunks().take(pa.array(order))
    return whole[order], people


def _columns(table: pa.Table, index: Observations, people: Column, where: Where) -> dict[str, Column]:
    photo_id = texts(table['photo_id'])
    high, low, good = uuid_words(texts(table['observation_uuid']))
    row = np.where(good, index.find(high, low), -1)
    seen = row >= 0
    at = np.where(seen, row, 0)

    def known_values(column: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        if not len(column):
            return np.full(len(row), np.nan)
        return np.where(seen & (column[at] != _UNKNOWN), column[at].astype(float), np.nan)

    day = known_values(index.day)
    path = pc.binary_join_element_wise(
        'photos', photo_id, pc.binary_join_element_wise('medium', texts(table['extension']), '.'), '/'
    )
    width, height = (numbers(column_or_none(table, n)) for n in ('width', 'height'))
    scale = np.minimum(1, MEDIUM_PX / np.fmax(width, height))
    licence = texts(column_or_none(table, 'license'))
    licence = pc.if_else(
        pc.match_substring_regex(licence, r'^(?i:CC-BY[A-Z-]*)$'),
        pc.binary_join_element_wise(licence, '4.0', '-'),
        licence,
    )
    lost = pc.if_else(pa.array(seen), pa.scalar(None, pa.string()), 'no observation with a place')
    return {
        'photo_id': photo_id,
        'uri': path if where.given else pc.binary_join_element_wise(BUCKET, path, '/'),
        'lon': pa.array(known_values(index.lon) / 1e7),
        'lat': pa.array(known_values(index.lat) / 1e7),
        'accuracy_m': pa.array(known_values(index.accuracy)),
        'taken_at': pa.array(np.where(np.isnan(day), 0, day).astype(np.int32), mask=np.isnan(day)).cast(pa.date32()),
        'licence': licence,
        'author': _names(texts(column_or_none(table, 'observer_id')), people),
        'source': pa.array(['inaturalist'] * len(table), pa.string()),
        'width': pa.array(np.round(width * scale)),
        'height': pa.array(np.round(height * scale)),
        'problem': lost,
        'detail': pc.if_else(
            pa.array(seen), None, pc.binary_join_element_wise('observation', texts(table['observation_uuid']), ' ')
        ),
    }


def _names(observer: Column, people: Column) -> Column:
    """Names of observers, or their numbers where there is no table of them."""
    if people is None or not len(people[0]):
        return observer
    ids, names = people
    number = numbers(observer)
    wanted = np.where(np.isnan(number), -1, number).astype(np.int64)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    known = pa.array(ids[at] == wanted)
    return pc.coalesce(pc.if_else(known, names.take(pa.array(at)), None), observer)
