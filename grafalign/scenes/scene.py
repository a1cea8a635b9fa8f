"""One scene: the metadata of a STAC item that pairing needs, or the reason why it cannot be used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pandas as pd
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from grafalign.scenes.radiometry import processing_baseline
from grafalign.scenes.regions import across_antimeridian

_MOST_KEYS = 1000
"""Properties or assets of one item: each would be a column of the table of all."""


@dataclass(frozen=True)
class Scene:
    """One STAC item as pairing needs it: footprint, time, cloud cover, assets."""

    item_id: str
    collection: str
    when: datetime
    """UTC; the middle where an item gives a start and an end."""
    cloud_percent: float | None
    baseline: str | None
    """Processing baseline, where the item states one."""
    footprint: BaseGeometry
    """In degrees, longitude first; cut at the antimeridian."""
    item: dict[str, Any]
    """The whole item; asset hrefs are absolute."""


class ItemError(ValueError):
    """An item that cannot be used as a scene.

    Args:
        reason: what is wrong, in words that are the same for all such items.
        detail: what this item has there.
    """

    def __init__(self, reason: str, detail: str = '') -> None:
        super().__init__(f'{reason}: {detail}' if detail else reason)
        self.reason, self.detail = reason, detail


def scene_of(item: dict[str, Any]) -> Scene:
    """The metadata of an item.

    A bbox is not asked for, because the outline says more. Times without a zone count as UTC.

    Raises:
        ItemError: the item has no id, assets, time or outline, or they make no sense.
    """
    if not item.get('id'):
        raise ItemError('the item has no id')
    if not isinstance(item.get('assets'), dict):
        raise ItemError('the item has no assets')
    properties = item.get('properties') or {}
    if not isinstance(properties, dict):
        raise ItemError('the item has no properties')
    if max(len(properties), len(item['assets'])) > _MOST_KEYS:
        raise ItemError('the item has too many properties or assets', f'more than {_MOST_KEYS:,}')
    return Scene(
        str(item['id']),
        str(item.get('collection') or ''),
        _when(properties),
        _cloud(properties),
        processing_baseline(item),
        _footprint(item),
        item,
    )


def _when(properties: dict[str, Any]) -> datetime:
    one = properties.get('datetime')
    stamps = [one] if one else [s for s in (properties.get('start_datetime'), properties.get('end_datetime')) if s]
    if not stamps:
        raise ItemError('the item has no time')
    try:
        if not all(isinstance(s, str) for s in stamps):
            raise ValueError('it is no text')
        times = [pd.Timestamp(s) for s in stamps]
        times = [t.tz_localize('UTC') if t.tzinfo is None else t.tz_convert('UTC') for t in times]
        middle: datetime = (times[0] + (times[-1] - times[0]) / 2).to_pydatetime(warn=False)
        return middle.astimezone(timezone.utc)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise ItemError("the item's time makes no sense", f'{stamps[0]!r} ({error})') from None


def _cloud(properties: dict[str, Any]) -> float | None:
    given = properties.get('eo:cloud_cover')
    if given is None:
        return None
    try:
        percent = float(given)
    except (ValueError, TypeError):
        percent = math.nan
    if math.isnan(percent):
        raise ItemError("the item's cloud cover makes no sense", repr(given))
    return percent


def _footprint(item: dict[str, Any]) -> BaseGeometry:
    if not item.get('geometry'):
        raise ItemError('the item has no outline')
    try:
        outline = shapely.make_valid(across_antimeridian(shape(item['geometry'])))
        if outline.is_empty:
            raise ValueError('it is empty')
        west, south, east, north = outline.bounds
        if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):  # false for NaN too
            raise ValueError(f'{west:.6g}, {south:.6g} to {east:.6g}, {north:.6g} is not in degrees')
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, shapely.errors.ShapelyError) as error:
        raise ItemError("the item's outline makes no sense", ' '.join(str(error).split())[:200]) from None
    return outline
