"""The bulk search of a STAC API, kept on disk: every region and period is asked for once, and later runs reuse it.

A search is one folder for the API, collections, period and filters; in it every region has

    REGION.parquet   the items (stac-geoparquet)
    REGION.json      what was asked, when, how many items and pages came, and which items could not be used

The JSON is written last and holds a digest of the table, so that a search counts as done only when both are whole. A
run that was killed finds the regions that it had finished.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import shapely

from grafalign import console
from grafalign.errors import MachineError, naming_full_disk
from grafalign.files import write_atomically
from grafalign.scenes.api import Api
from grafalign.scenes.hrefs import absolute_assets, self_link
from grafalign.scenes.item_file import ItemFile, Items
from grafalign.scenes.local import Rejected
from grafalign.scenes.regions import Box
from grafalign.scenes.scene import ItemError, scene_of
from grafalign.scenes.source import SceneSource
from grafalign.scenes.table import UNWRITABLE, keep_items, read_items

_FORMAT = 1
"""Changes when what is kept changes its meaning."""


def search_items(
    source: SceneSource,
    regions: list[Box],
    dates: tuple[datetime, datetime] | None,
    near: shapely.STRtree | None,
    rejected: list[Rejected],
    counts: Counter[str],
    newer_than: datetime | None = None,
) -> Iterator[dict[str, Any]]:
    """The items of an API over several regions; those that were searched before come from disk.

    All regions are searched before the first item is given, so that nothing is done with half of them.

    Args:
        source: API and filters; the filters may be pushed to the server but have to be applied again.
        regions: boxes in degrees; an item that touches two of them may come twice.
        dates: first and last time, for a source without a period; only the days count.
        near: only items whose bbox touches one of these geometries.
        rejected: gets a row for every item that the API gave and that has no id, time or outline.
        counts: gets regions, regions from cache, requests, retries, pages, repeated pages.
        newer_than: searches that were kept before this are made anew.

    Raises:
        GrafalignError: the API does not answer, or the cache cannot be written.
    """
    period = _period(source, dates)
    request = {
        'format': _FORMAT,
        'api': str(source.api).rstrip('/'),
        'collections': sorted(source.collections),
        'period': period,
        'where': source.where,
        'max_cloud_percent': source.max_cloud_percent,
    }
    folder = source.cache_folder / _digest(request)
    files = [folder / f'{_region_name(region)}.parquet' for region in regions]
    known = {file: record for file in files if (record := _finished(file, newer_than)) is not None}
    counts['regions'] += len(regions)
    counts['regions from cache'] += len(known)
    if known:
        days = sorted({str(record['searched_at'])[:10] for record in known.values()})
        which = (
            f'the search of {days[0]}'
            if len(known) == len(regions) == 1
            else (f'{len(known)} of {len(regions)} searches of {" to ".join(dict.fromkeys((days[0], days[-1])))}')
        )
        place = files[0] if len(regions) == 1 else folder
        console.log(f'reusing {which} (delete {place} to search anew)')
    api = Api(source, period, counts)
    missing = [(region, file) for region, file in zip(regions, files, strict=True) if file not in known]
    for region, file in console.track(missing, 'searching scenes'):
        known[file] = _search_one(api, region, file, request, counts)
    for file in files:
        rows = [
            (str(kind), str(name), str(reason), str(detail)) for kind, name, reason, detail in known[file]['rejected']
        ]
        rejected_before = set(rejected)  # an item of two regions is rejected once
        rejected += [row for row in rows if row not in rejected_before]
        if known[file]['items']:
            yield from read_items(file, near)


def _search_one(api: Api, region: Box, file: Path, request: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Search one region and keep what was found."""
    before = counts.copy()
    items, places, rejected = ItemFile(), [], []
    for item in api.search(region):
        if not item.get('collection') and len(request['collections']) == 1:
            item['collection'] = request['collections'][0]  # it may be left out, and the API was asked for no other
        try:
            scene_of(item)
        except ItemError as error:
            rejected.append(('scene', _printable(item.get('id')), error.reason, _printable(error.detail)))
            continue
        places.append(items.add(absolute_assets(item, self_link(item) or request['api'], False)))
    record = {
        **request,
        'region': region,
        'searched_at': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'items': len(places),
        'rejected': rejected,
        'counts': dict(counts - before),
    }
    try:
        with naming_full_disk(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            table, bad = keep_items(Items(items.read, places))
            record['items'] = len(places) - len(bad)
            rejected += [('scene', _printable(item.get('id')), UNWRITABLE, reason) for item, reason in bad]
            record['digest'] = _digest_of(table)
            write_atomically(file, table, shared=True)
            write_atomically(file.with_suffix('.json'), (json.dumps(record, indent=1) + '\n').encode(), shared=True)
    except OSError as error:
        raise MachineError(
            f'{file} cannot be written ({error.strerror}); set scenes.cache to a folder that can.'
        ) from None
    return record


def _printable(value: Any) -> str:
    """Text that can be written: JSON may hold halves of surrogate pairs, files may not."""
    return str(value).encode('utf-8', 'backslashreplace').decode()


def _finished(file: Path, newer_than: datetime | None) -> dict[str, Any] | None:
    """The record of a finished search; None where there is none, it is damaged, or too old."""
    try:
        record = json.loads(file.with_suffix('.json').read_text(encoding='utf-8'))
        if newer_than is not None and datetime.fromisoformat(record['searched_at']) < newer_than:
            return None
        if record['digest'] == _digest_of(file.read_bytes()) and isinstance(record['rejected'], list):
            return dict(record)
        problem = 'its table has changed'
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:  # whatever it is, searching again mends it
        problem = ' '.join(str(error).split())[:200]
    console.log(f'the search kept in {file} is damaged ({problem}) and is made anew')
    return None


def _period(source: SceneSource, dates: tuple[datetime, datetime] | None) -> str | None:
    """RFC 3339 interval of whole days, so that one more photo on a day leaves the search the same."""
    days: tuple[date, date] | tuple[datetime, datetime] | None = source.period or dates
    return f'{days[0]:%Y-%m-%d}T00:00:00Z/{days[1]:%Y-%m-%d}T23:59:59Z' if days else None


def _region_name(region: Box) -> str:
    """A file name that shows where the region is."""
    return '_'.join(f'{v:.6f}'.rstrip('0').rstrip('.') for v in region)


def _digest(request: dict[str, Any]) -> str:
    return _digest_of(json.dumps(request, sort_keys=True, default=str).encode())


def _digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
