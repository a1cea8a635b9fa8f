"""Scenes as STAC items: read a static catalog, an item file or a STAC API into one list of plain facts.

One bulk read or search per run; nothing here is asked again per photo or per tile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urljoin, urlsplit

import pandas as pd
import pystac
import shapely
from pydantic import Field, model_validator
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from grafalign.config import Settings
from grafalign.errors import GrafalignError


class SceneSource(Settings):
    """The `scenes:` part of a recipe; give one of `catalog`, `items` and `api`."""

    catalog: Path | None = None
    """Static STAC catalog or collection (JSON)."""
    items: Path | None = None
    """Item file: a JSON item, an ItemCollection, NDJSON, or stac-geoparquet."""
    api: str | None = None
    """Root URL of a STAC API."""
    collections: list[str] = []
    """Only these collections; all where empty. An API needs at least one."""
    period: tuple[date, date] | None = None
    """First and last day, both included."""
    max_cloud_percent: float | None = Field(default=None, ge=0, le=100)
    """Scenes with more `eo:cloud_cover` than this are not used; scenes that say nothing are."""

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        if sum(v is not None for v in (self.catalog, self.items, self.api)) != 1:
            raise ValueError('give exactly one of `catalog`, `items` and `api`')
        if self.api is not None and not self.collections:
            raise ValueError('a STAC API needs `collections`')
        return self

    @property
    def name(self) -> str:
        """What to call the source in messages."""
        return str(self.catalog or self.items or self.api)


@dataclass(frozen=True)
class Scene:
    """The facts of one STAC item that pairing needs."""

    item_id: str
    collection: str
    when: datetime
    """UTC; the middle where an item gives a start and an end."""
    cloud_percent: float | None
    baseline: str | None
    """Processing baseline, where the item states one."""
    footprint: BaseGeometry
    """In degrees, longitude first."""
    item: dict[str, Any]
    """The whole item; asset hrefs are absolute."""


def load_scenes(
    source: SceneSource, bbox: tuple[float, float, float, float], dates: tuple[datetime, datetime] | None = None
) -> list[Scene]:
    """Read all scenes of a source that touch a region.

    Args:
        source: where to look, and the filters.
        bbox: west, south, east, north of the photos, in degrees.
        dates: for an API without a `period`: search no further than this.

    Returns:
        Scenes sorted by collection, time and id, each once.

    Raises:
        GrafalignError: the source cannot be read, or holds no scene over the region.
    """
    if source.catalog is not None:
        raw: Iterable[dict[str, Any]] = _from_catalog(source.catalog)
    elif source.items is not None:
        raw = _from_file(source.items)
    else:
        raw = _from_api(source, bbox, dates)
    region = shapely.box(*bbox)
    scenes: dict[tuple[str, str], Scene] = {}
    total = 0
    for item in raw:
        total += 1
        try:
            scene = scene_of(item)
        except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as error:
            raise GrafalignError(
                f'{source.name}: item {item.get("id")} is malformed ({error}); mend or remove it.'
            ) from None
        if scene is not None and _wanted(scene, source, region):
            scenes[scene.collection, scene.item_id] = scene
    if not scenes:
        raise GrafalignError(
            f'{source.name}: none of its {total} items lies over the photos '
            f'({bbox[0]:.4f} to {bbox[2]:.4f} east, {bbox[1]:.4f} to {bbox[3]:.4f} north) and passes the filters; '
            'check the region, scenes.collections, scenes.period and scenes.max_cloud_percent.'
        )
    return sorted(scenes.values(), key=lambda s: (s.collection, s.when, s.item_id))


def _wanted(scene: Scene, source: SceneSource, region: BaseGeometry) -> bool:
    if source.collections and scene.collection not in source.collections:
        return False
    if source.period and not source.period[0] <= scene.when.date() <= source.period[1]:
        return False
    limit = source.max_cloud_percent
    if limit is not None and scene.cloud_percent is not None and scene.cloud_percent > limit:
        return False
    return bool(scene.footprint.intersects(region))


def scene_of(item: dict[str, Any]) -> Scene | None:
    """The facts of an item; None for an item without a geometry or a time."""
    properties = item.get('properties') or {}
    start, end = properties.get('start_datetime'), properties.get('end_datetime')
    stamps = [s for s in ([properties['datetime']] if properties.get('datetime') else [start, end]) if s]
    if not item.get('geometry') or not stamps:
        return None
    times = [pd.Timestamp(s) for s in stamps]
    times = [t.tz_localize('UTC') if t.tzinfo is None else t.tz_convert('UTC') for t in times]
    when = times[0] + (times[-1] - times[0]) / 2
    cloud = properties.get('eo:cloud_cover')
    baseline = properties.get('s2:processing_baseline') or properties.get('processing:version')
    return Scene(
        str(item['id']),
        str(item.get('collection') or ''),
        when.to_pydatetime().astimezone(timezone.utc),
        None if cloud is None else float(cloud),
        None if baseline is None else str(baseline),
        shapely.make_valid(shape(item['geometry'])),
        item,
    )


def _absolute(item: dict[str, Any], base: str) -> dict[str, Any]:
    """The item with asset hrefs made absolute against the file or URL it came from."""
    assets = {}
    for key, asset in (item.get('assets') or {}).items():
        if not isinstance(asset, dict):
            continue  # a band that is looked for here is then reported as missing
        href = str(asset.get('href', ''))
        if href.startswith('file://'):
            href = unquote(urlsplit(href).path)  # GDAL takes the path as it is, escapes and all
        elif '://' not in href and not href.startswith('/'):
            href = urljoin(base, href) if '://' in base else str((Path(base).parent / href).resolve())
        assets[key] = {**asset, 'href': href}
    return {**item, 'assets': assets}


def _from_catalog(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise GrafalignError(f'There is no file {path}; set scenes.catalog to a catalog.json or collection.json.')
    try:
        catalog = pystac.Catalog.from_file(str(path))
        for item in catalog.get_items(recursive=True):
            yield _absolute(
                item.to_dict(include_self_link=False, transform_hrefs=False), item.get_self_href() or str(path)
            )
    except GrafalignError:
        raise
    except Exception as error:  # pystac raises many types; all mean that some file of the catalog is unusable
        raise GrafalignError(
            f'{path} cannot be read as a STAC catalog ({error}); check it with a STAC validator.'
        ) from None


def _from_file(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise GrafalignError(
            f'There is no file {path}; set scenes.items to a .json, .ndjson or .parquet file of STAC items.'
        )
    try:
        if path.suffix.lower() in ('.parquet', '.geoparquet'):
            import pyarrow.parquet
            from stac_geoparquet.arrow import stac_table_to_items

            raw: list[dict[str, Any]] = list(stac_table_to_items(pyarrow.parquet.read_table(path)))
        elif path.suffix.lower() in ('.ndjson', '.jsonl'):
            raw = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
        else:
            content = json.loads(path.read_text(encoding='utf-8'))
            raw = content if isinstance(content, list) else content.get('features', [content])
    except Exception as error:  # JSON, Arrow and encoding errors: the user needs the file's name
        raise GrafalignError(f'{path} cannot be read as STAC items ({error}); check that the file is whole.') from None
    for number, item in enumerate(raw):
        if not isinstance(item, dict) or 'id' not in item or not isinstance(item.get('assets'), dict):
            raise GrafalignError(f'{path}: entry {number} is not a STAC item (no `id` or `assets`); remove or mend it.')
        yield _absolute(item, str(path.resolve()))


def _from_api(
    source: SceneSource, bbox: tuple[float, float, float, float], dates: tuple[datetime, datetime] | None
) -> Iterator[dict[str, Any]]:
    from pystac_client import Client
    from pystac_client.exceptions import APIError

    period = None
    if source.period:
        period = f'{source.period[0]}T00:00:00Z/{source.period[1]}T23:59:59Z'
    elif dates:
        period = f'{dates[0]:%Y-%m-%dT%H:%M:%SZ}/{dates[1]:%Y-%m-%dT%H:%M:%SZ}'
    try:
        client = Client.open(str(source.api))
        search = client.search(collections=source.collections, bbox=bbox, datetime=period, limit=500)
        for item in search.items_as_dicts():
            links = {link.get('rel'): link.get('href') for link in item.get('links') or []}
            yield _absolute(item, links.get('self') or str(source.api))
    except (APIError, OSError, ValueError, NotImplementedError) as error:
        raise GrafalignError(
            f'The STAC API {source.api} did not answer the search ({error}); check scenes.api and try again.'
        ) from None
