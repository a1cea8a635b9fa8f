"""Photos in WebDataset shards as img2dataset writes them: 00000.tar with the images, 00000.parquet with their metadata.

The Parquet file has one row a sample with at least `key`, `status` (success, failed_to_download, failed_to_resize),
`error_message`, `url`, `width`, `height`, `exif` and whatever columns the user had saved beside them; a sample's image
is the member KEY.jpg (.png, .webp) of the tar. `exif` is a JSON object of the texts that the package exifread prints,
such as `"GPS GPSLatitude": "[42, 36, 617/50]"`. Source: https://github.com/rom1504/img2dataset,
img2dataset/downloader.py and
writer.py.

`sha256` is that of the bytes on the web, not of those in the tar; name it as `columns: {digest: sha256}` to find photos
that were downloaded twice.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.local
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.errors import InputError, RemoteError
from grafalign.photos.batches import read_batches
from grafalign.photos.exif_values import (
    camera_time,
    edit_time_counts,
    gps_time,
    heading,
    number,
    position,
    taken_time,
)
from grafalign.photos.guess import GUESSES, theirs_for_ours
from grafalign.photos.opening import files_of, is_url, name_of, open_stream
from grafalign.photos.raw import Raw
from grafalign.photos.values import Column, Floats, numbers, texts

_IMAGES = ('jpg', 'jpeg', 'png', 'webp')


def read_webdataset(folder: str, columns: Mapping[str, str]) -> Iterator[Raw]:
    """Stream the samples of all shards; the uri of a photo is `tar://MEMBER::PATH_OF_TAR` in the notation of fsspec.

    Args:
        folder: where the shards are; a local folder, or a URL that can be listed.
        columns: our column names to theirs, for positions and metadata that were saved beside the images.

    Raises:
        GrafalignError: there is no shard, a shard has no tar, or its table cannot be read.
    """
    found = _shards(folder)
    for table in sorted(f for f in found if re.fullmatch(r'\d+\.parquet', name_of(f))):
        tar = table.removesuffix('.parquet') + '.tar'
        if tar not in found:
            raise InputError(f'{table} has no {name_of(tar)} beside it; copy that shard whole or remove its table.')
        yield from _shard(table, tar, columns)


def _shards(folder: str) -> set[str]:
    if is_url(folder):
        try:
            fs, path = fsspec.core.url_to_fs(folder)
            found = {fs.unstrip_protocol(p) for p in fs.ls(path, detail=False)}
        except Exception as error:  # every file system has errors of its own: the user needs the address
            reason = ' '.join(str(error).split())
            raise RemoteError(f'{folder} cannot be listed ({reason}); check the address and the rights.') from None
    else:
        found = set(files_of(folder)) if Path(folder).is_dir() and any(Path(folder).iterdir()) else set()
    if not any(re.fullmatch(r'\d+\.parquet', name_of(f)) for f in found):
        raise InputError(
            f'{folder} holds no shards of img2dataset (00000.tar with 00000.parquet); set photos.webdataset to its '
            'output folder.'
        )
    return found


def _shard(table: str, tar: str, columns: Mapping[str, str]) -> Iterator[Raw]:
    chosen: dict[str, str] = {}

    def choose(names: list[str]) -> list[str]:
        if 'key' not in names or 'status' not in names:
            raise InputError(f'{table} has no columns key and status, so img2dataset did not write it.')
        chosen.update(theirs_for_ours(table, names, columns, ()))
        chosen.pop('uri', None)
        if 'photo_id' not in columns:
            chosen.pop('photo_id', None)
        extra = [n for n in ('key', 'status', 'error_message', 'exif') if n in names]
        if not {'lon', 'lat'} <= set(chosen) and 'exif' not in names:
            raise InputError(
                f'{table} has neither a column for lon and lat nor one for exif; name them in the recipe, for example '
                f'photos: {{columns: {{lon: COLUMN}}}}. Its columns are {", ".join(names)}.'
            )
        return list(dict.fromkeys([*chosen.values(), *extra]))

    suffix = _suffix(tar)
    path = tar if is_url(tar) else fsspec.implementations.local.make_path_posix(tar)
    for batch in read_batches(table, choose):
        rows = batch.table
        key = texts(rows['key'])
        found = {ours: rows[theirs] for ours, theirs in chosen.items() if ours in GUESSES}
        if 'exif' in rows.column_names:
            found |= _from_exif(texts(rows['exif']), found)
        found.setdefault('photo_id', key)
        member = pc.binary_join_element_wise(pa.scalar('tar://'), key, pa.scalar(f'.{suffix}::{path}'), '')
        failed = pc.fill_null(pc.not_equal(texts(rows['status']), 'success'), True)
        message = (
            texts(rows['error_message']) if 'error_message' in rows.column_names else pa.nulls(len(rows), pa.string())
        )
        status = pc.if_else(failed, pc.coalesce(texts(rows['status']), pa.scalar('no status')), None)
        found['problem'] = pc.coalesce(status, found['problem']) if 'problem' in found else status
        found['detail'] = pc.if_else(failed, pc.coalesce(message, pa.scalar('')), None)
        yield Raw({**found, 'uri': member}, len(rows), None)


def _suffix(tar: str) -> str:
    """The suffix of a shard's images: that of the first image in the tar."""
    try:
        with open_stream(tar) as stream, tarfile.open(fileobj=stream, mode='r|') as members:
            for _, member in zip(range(20), members, strict=False):
                suffix = member.name.rpartition('.')[2].lower()
                if suffix in _IMAGES:
                    return suffix
    except tarfile.TarError as error:
        raise InputError(f'{tar} cannot be read as a tar ({error}); copy that shard again.') from None
    return 'jpg'  # an empty shard, all of whose downloads failed


def _from_exif(cells: Column, found: Mapping[str, Any]) -> dict[str, Column]:
    """Columns from the exif texts, for rows where the columns of the table do not speak.

    The field of view is left out: shards hold images that may have been cropped.
    """
    columns: dict[str, list[Any]] = {n: [] for n in ('lon', 'lat', 'accuracy_m', 'heading_deg', 'taken_at')}
    problems: list[str | None] = []
    for cell in cells.to_pylist():
        tags = _tags(cell)
        lon, lat, problem = position(
            _ratios(tags.get('GPS GPSLongitude')),
            tags.get('GPS GPSLongitudeRef'),
            _ratios(tags.get('GPS GPSLatitude')),
            tags.get('GPS GPSLatitudeRef'),
        )
        when = _time(tags)
        columns['lon'].append(lon)
        columns['lat'].append(lat)
        columns['accuracy_m'].append(_first(tags.get('GPS GPSHPositioningError') or tags.get('GPS Tag 0x001F')))
        columns['heading_deg'].append(
            heading(_first(tags.get('GPS GPSImgDirection')), tags.get('GPS GPSImgDirectionRef'), lon, lat, when)
        )
        columns['taken_at'].append(when)
        problems.append(problem)
    made: dict[str, Column] = {
        'taken_at': found.get('taken_at', pa.array(columns.pop('taken_at'), pa.timestamp('us', 'UTC')))
    }
    for name, values in columns.items():
        mine: Floats = np.array([np.nan if v is None else v for v in values], dtype=float)
        if name in found:
            theirs = numbers(found[name])
            mine = np.where(np.isnan(theirs), mine, theirs)
        made[name] = pa.array(mine)
    if not {'lon', 'lat'} <= set(found):
        made['problem'] = pa.array(problems, pa.string())
    return made


def _tags(cell: str | None) -> dict[str, str]:
    try:
        tags = json.loads(cell) if cell else {}
    except (ValueError, RecursionError):
        return {}
    return {k: str(v) for k, v in tags.items()} if isinstance(tags, dict) else {}


def _ratios(text: str | None) -> list[float | None]:
    """The numbers of `[42, 36, 617/50]` or `617/50`; None for those that make no sense (`0/0`)."""
    if not text:
        return []
    values = []
    for part in text.strip('[] ').split(','):
        above, _, below = part.strip().partition('/')
        try:
            values.append(number(float(above) / float(below or 1)))
        except (ValueError, ZeroDivisionError):
            values.append(None)
    return values


def _first(text: str | None) -> float | None:
    return next(iter(_ratios(text)), None)


def _time(tags: Mapping[str, str]) -> datetime | None:
    offset = tags.get('EXIF OffsetTimeOriginal') or tags.get('EXIF OffsetTime')
    stamps = [tags.get('EXIF DateTimeOriginal'), tags.get('EXIF DateTimeDigitized')]
    if edit_time_counts(tags.get('Image Make'), tags.get('Image Software')):
        stamps.append(tags.get('Image DateTime'))
    camera = next((t for t in (camera_time(stamp, offset) for stamp in stamps) if t is not None), None)
    return taken_time(gps_time(tags.get('GPS GPSDate'), _ratios(tags.get('GPS GPSTimeStamp'))), camera)
