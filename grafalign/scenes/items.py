"""Scenes as STAC items: a catalog, an item file, a folder of rasters or a STAC API read into one list of metadata.

One bulk read or search per run; nothing here is asked again per photo or per tile.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from grafalign.errors import GrafalignError, InputError
from grafalign.scenes.catalog import from_catalog
from grafalign.scenes.geotiffs import from_rasters
from grafalign.scenes.hrefs import is_private, refused
from grafalign.scenes.local import Rejected, from_file
from grafalign.scenes.radiometry import band_sources
from grafalign.scenes.regions import Box, as_boxes, regions_of
from grafalign.scenes.scene import ItemError, Scene, scene_of
from grafalign.scenes.scene_table import SceneTable, scene_table
from grafalign.scenes.source import SceneSource, SignSettings
from grafalign.scenes.table import UNWRITABLE, unwritable
from grafalign.scenes.where import Conditions
from grafalign.web.addresses import host_of

__all__ = [
    'Box',
    'FoundScenes',
    'ItemError',
    'Rejected',
    'Scene',
    'SceneSource',
    'SignSettings',
    'load_scenes',
    'regions_of',
    'scene_of',
]


@dataclass(frozen=True)
class FoundScenes(Sequence[Scene]):
    """What a source holds over some regions; as a sequence, its scenes."""

    scenes: SceneTable
    """Sorted by collection, time and id, each once."""
    rejected: list[Rejected]
    """Items that cannot be used: `scene`, id, reason, detail. Items that a filter leaves out are only counted."""
    counts: dict[str, int]
    """`items` looked at, `scenes` used, `rejected`, and why others were left out: `duplicates`, `of other collections`,
    `outside the period`, `too cloudy`, `where`, `elsewhere`. For an API also `regions`, `regions from cache`,
    `requests`, `retries`, `pages`, `repeated pages`, `searches with smaller pages` and `filters refused by the server`.
    What did not occur is not there."""

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[Scene]:
        return iter(self.scenes)

    def __getitem__(self, index: Any) -> Any:
        return self.scenes[index]


def public_assets_only(source: SceneSource) -> bool:
    """Whether assets must lie at public addresses: those of an API that is itself public, unless the recipe says so."""
    if source.api is None or source.private_addresses:
        return False
    return not is_private(host_of(source.api))


def check_source(source: SceneSource, bands: list[str], gsd_m: float) -> None:
    """Refuse early, before photos are read, what can be seen of a source at little cost.

    A file, catalog or folder must be there, and some of its first items must have the bands; an API must answer.

    Raises:
        GrafalignError: the source cannot be used.
    """
    if source.api is not None:
        from grafalign.scenes.api import Api

        Api(source, None, Counter()).check()
        return
    problem: GrafalignError | None = None
    for item in itertools.islice(_on_this_machine(source, []), _LOOKED_AT):
        if source.collections and str(item.get('collection') or '') not in source.collections:
            continue
        try:
            band_sources(item, bands, gsd_m)
            return
        except GrafalignError as error:
            problem = problem or error
    if problem is not None:
        raise problem


_LOOKED_AT = 50
"""Items whose bands are looked at before anything else is done."""


def _on_this_machine(source: SceneSource, rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """The items of a source that is no API; what cannot be used goes to `rejected`."""
    if source.catalog is not None:
        return from_catalog(source.catalog, rejected, source.private_addresses)
    if source.items is not None:
        return from_file(source.items, rejected)
    if source.folder is not None:
        return from_rasters(source.folder, rejected, source.date, source.cache_folder)
    return iter(())


def load_scenes(
    source: SceneSource,
    regions: Iterable[Box] | Box,
    dates: tuple[datetime, datetime] | None = None,
    tiles: npt.NDArray[np.object_] | None = None,
    newer_than: datetime | None = None,
) -> FoundScenes:
    """Read all scenes of a source that touch some regions.

    Args:
        source: where to look, and the filters.
        regions: west, south, east, north in degrees, one box or several, as `regions_of` makes them; an API is searched
            once for each.
        dates: for an API without a `period`: search no further than this.
        tiles: polygons in degrees; only scenes that touch one of them are kept. The regions are coarse, so this is what
            keeps the number of scenes in memory down.
        newer_than: for an API: searches that were kept before this are made anew; none by default.

    Raises:
        GrafalignError: the source cannot be read, or holds no usable scene over the regions.
    """
    boxes = as_boxes(regions)
    places = [shapely.box(*b) for b in boxes] if tiles is None else list(tiles)
    near = shapely.STRtree(places)
    rejected: list[Rejected] = []
    counts: Counter[str] = Counter()
    raw: Iterable[dict[str, Any]]
    if source.api is not None:
        from grafalign.scenes.search import search_items

        raw = search_items(source, boxes, dates, near if tiles is not None else None, rejected, counts, newer_than)
    else:
        raw = _on_this_machine(source, rejected)
    if source.folder is not None:
        raw = list(raw)
        counts['items'] += len(rejected)  # each raster is one, usable or not
    conditions = Conditions(source.where)
    usable = _usable(source, raw, near, conditions, rejected, counts)
    scenes = scene_table(usable if source.api is not None else _writable(usable, rejected))
    counts |= Counter(rejected=len(rejected), scenes=len(scenes))
    if not len(scenes):
        _complain(source, boxes, conditions, rejected, counts)
    return FoundScenes(scenes, rejected, {k: v for k, v in counts.items() if v})


def _usable(
    source: SceneSource,
    raw: Iterable[dict[str, Any]],
    near: shapely.STRtree,
    conditions: Conditions,
    rejected: list[Rejected],
    counts: Counter[str],
) -> Iterator[Scene]:
    """The scenes that pass all filters, each once; fills `rejected` and `counts`."""
    public_only = public_assets_only(source)
    names: set[bytes] = set()
    for item in raw:
        counts['items'] += 1
        name = _name_digest(item)
        if name in names:
            counts['duplicates'] += 1
            continue
        names.add(name)
        try:
            scene = scene_of(item)
            out = _left_out(scene, source, near, conditions)
            if out is None and (detail := refused(item, source.allowed_schemes, public_only)) is not None:
                raise ItemError('the address of an asset is not allowed', detail)
        except ItemError as error:
            rejected.append(('scene', str(item.get('id')), error.reason, error.detail))
            continue
        if out is None:
            yield scene
        else:
            counts[out] += 1


def _name_digest(item: dict[str, Any]) -> bytes:
    """Short for collection and id: a million names would take a quarter of a gigabyte."""
    name = repr((str(item.get('collection') or ''), str(item.get('id'))))
    return hashlib.blake2b(name.encode('utf-8', 'backslashreplace'), digest_size=12).digest()


def _writable(scenes: Iterator[Scene], rejected: list[Rejected]) -> Iterator[Scene]:
    """The scenes whose items can be kept in a table; items of an API were, when its search was kept."""
    while some := list(itertools.islice(scenes, _CHECKED_TOGETHER)):
        bad = dict(unwritable([scene.item for scene in some]))
        rejected += [('scene', some[number].item_id, UNWRITABLE, reason) for number, reason in bad.items()]
        yield from (scene for number, scene in enumerate(some) if number not in bad)


_CHECKED_TOGETHER = 512


def _left_out(scene: Scene, source: SceneSource, near: shapely.STRtree, conditions: Conditions) -> str | None:
    """Which filter leaves a scene out; None where all let it pass."""
    if source.collections and scene.collection not in source.collections:
        return 'of other collections'
    passing = conditions.hold(scene.item.get('properties') or {})  # before the others, so that it knows the properties
    if source.period and not source.period[0] <= scene.when.date() <= source.period[1]:
        return 'outside the period'
    limit = source.max_cloud_percent
    if limit is not None and scene.cloud_percent is not None and scene.cloud_percent > limit:
        return 'too cloudy'
    if not passing:
        return 'where'
    return None if len(near.query(scene.footprint, predicate='intersects')) else 'elsewhere'


def _complain(
    source: SceneSource, boxes: list[Box], conditions: Conditions, rejected: list[Rejected], counts: Counter[str]
) -> None:
    """Say why there is no scene: the most telling reason first."""
    if rejected and counts['items'] <= sum(r[2] != 'is not a STAC item' for r in rejected):
        _, name, reason, detail = rejected[0]
        why = f'{name}: {reason}' + (f': {detail}' if detail else '')
        raise InputError(
            f'{source.name}: none of its {len(rejected)} items can be used ({why}); mend or remove such items.'
        )
    if source.api is not None and not counts['items'] and source.where:
        from grafalign.scenes.api import Api

        for item in Api(
            source, None, Counter()
        ).sample():  # the server applied `where` and says nothing of misspellings
            conditions.hold(item.get('properties') or {})
    conditions.complain(source.name)
    west, south = min(b[0] for b in boxes), min(b[1] for b in boxes)
    east, north = max(b[2] for b in boxes), max(b[3] for b in boxes)
    out = ', '.join(f'{n} {why}' for why in _REASONS if (n := counts[why]))
    raise InputError(
        f'{source.name}: none of its {counts["items"]} items lies over the photos '
        f'({west:.4f} to {east:.4f} east, {south:.4f} to {north:.4f} north) and passes the filters'
        f'{" (" + out + ")" if out else ""}; check the region, scenes.collections, scenes.period, '
        'scenes.max_cloud_percent and scenes.where.'
    )


_REASONS = ('elsewhere', 'of other collections', 'outside the period', 'too cloudy', 'where', 'rejected')
