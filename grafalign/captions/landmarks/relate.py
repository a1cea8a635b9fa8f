"""What of a map's objects is on an image: clipped, measured, and whether anybody could see it there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import shapely

from grafalign.captions.landmarks.footprints import Footprint
from grafalign.captions.landmarks.objects import MapObject

LEAST_AREA_PX, LEAST_LINE_PX, LEAST_POINT_PX = 4.0, 12.0, 3.0
"""Side of the square of an area, length of a line, and size of a point, that can be seen."""
LEAST_WIDTH_PX = 0.7
"""Width of a line that can be seen: roads stand out."""
NEXT_TO = 0.05
"""Distance of neighbours, as a share of the image's side."""
_ACROSS, _DOWN = ('west', '', 'east'), ('north', '', 'south')
_COMPASS = ('north', 'north-east', 'east', 'south-east', 'south', 'south-west', 'west', 'north-west')


@dataclass(frozen=True)
class Landmark:
    """An object on an image."""

    image: int
    image_id: str
    landmark_id: str
    kind: str
    key: str
    name: str | None
    share: float
    """Of the image, 0 to 1; a line counts with its width, a point with its size."""
    length_m: float | None
    """Of a line, inside the image."""
    area_m2: float | None
    """Of an area, inside the image."""
    row: float
    """Middle of its part inside the image, in pixels from the top."""
    col: float
    position: str
    """One of nine fields of a north-up image: north-west, centre, ..."""
    relation: str | None
    """To the largest other visible landmark: inside, around, next to, or a direction."""
    related_to: str | None
    """That landmark's id."""
    distance_m: float | None
    visible: bool
    reason: str | None
    """Why it is not."""
    since: date | None
    licence: str
    credit: str
    geometry: bytes
    """Its part inside the image, WKB in pixels, rows down."""


def landmarks_of(footprint: Footprint, objects: Sequence[MapObject], keep_younger: bool = False) -> list[Landmark]:
    """The landmarks of an image, the largest first.

    Args:
        footprint: where it lies.
        objects: objects near it; pieces of one object are put together by their id.
        keep_younger: also count as visible what is known to have been put on the map after the image was taken.
    """
    frame = shapely.box(0, 0, footprint.width, footprint.height)
    pieces: dict[str, list[MapObject]] = {}
    for one in objects:
        pieces.setdefault(one.object_id, []).append(one)
    parts = [part for group in pieces.values() if (part := _part(group, footprint, frame)) is not None]
    parts.sort(key=lambda p: (-p.body.area, p.first.object_id))
    found = []
    for part in parts:
        reason = _reason(part, footprint, keep_younger)
        found.append((part, reason))
    visible = [part for part, reason in found if reason is None]
    return [_landmark(part, reason, footprint, visible) for part, reason in found]


@dataclass(frozen=True)
class _Part:
    """What of an object is on the image."""

    first: MapObject
    shape: Any
    """As the map has it, in pixels, inside the frame."""
    body: Any
    """With the width of a line and the size of a point."""
    dimension: int


def _part(group: Sequence[MapObject], footprint: Footprint, frame: Any) -> _Part | None:
    first = group[0]
    shape = shapely.union_all([footprint.to_pixels(shapely.make_valid(one.geometry)) for one in group])
    dimension = int(shapely.get_dimensions(shape))
    inside = shapely.intersection(shape, frame)
    if inside.is_empty or (dimension == 2 and not inside.area):
        return None
    kind, scale = first.kind, 1 / footprint.gsd_m
    if dimension == 2:
        body = inside
    elif dimension == 1:
        body = shapely.intersection(inside.buffer((kind.line_m or 1) / 2 * scale, cap_style='flat'), frame)
    else:
        body = shapely.intersection(inside.buffer((kind.point_m or 1) / 2 * scale), frame)
    return _Part(first, inside, body, dimension)


def _reason(part: _Part, footprint: Footprint, keep_younger: bool) -> str | None:
    """Why nobody sees it on the image; None if one can."""
    first, gsd = part.first, footprint.gsd_m
    if first.hidden is not None:
        return first.hidden
    if not keep_younger and first.since is not None and footprint.taken is not None and first.since > footprint.taken:
        return 'younger than the scene'
    if part.dimension == 2 and part.shape.area < LEAST_AREA_PX**2:
        return 'too small'
    if part.dimension == 1:
        if (first.kind.line_m or 0) / gsd < LEAST_WIDTH_PX:
            return 'too thin'
        if part.shape.length < LEAST_LINE_PX:
            return 'too small'
    if part.dimension == 0:
        if first.kind.point_m is None:
            return 'a point of no known size'
        if first.kind.point_m / gsd < LEAST_POINT_PX:
            return 'too small'
    return None


def _landmark(part: _Part, reason: str | None, footprint: Footprint, visible: Sequence[_Part]) -> Landmark:
    first, gsd = part.first, footprint.gsd_m
    middle = part.body.centroid if not part.body.is_empty else part.shape.centroid
    other = next((p for p in visible if p is not part), None) if reason is None else None
    relation, distance = (None, None) if other is None else _relation(part, other, footprint)
    return Landmark(
        image=footprint.row,
        image_id=footprint.image_id,
        landmark_id=first.object_id,
        kind=first.kind.name,
        key=first.kind.key,
        name=first.name,
        share=float(part.body.area / (footprint.width * footprint.height)),
        length_m=float(part.shape.length * gsd) if part.dimension == 1 else None,
        area_m2=float(part.shape.area * gsd**2) if part.dimension == 2 else None,
        row=float(middle.y),
        col=float(middle.x),
        position=position_of(middle.x / footprint.width, middle.y / footprint.height),
        relation=relation,
        related_to=None if other is None else other.first.object_id,
        distance_m=distance,
        visible=reason is None,
        reason=reason,
        since=first.since,
        licence=first.licence,
        credit=first.credit,
        geometry=shapely.to_wkb(part.shape),
    )


def position_of(across: float, down: float) -> str:
    """The field of nine that a place of a north-up image is in.

    Args:
        across: 0 at the left edge to 1 at the right.
        down: 0 at the top to 1 at the bottom.

    Example:
        >>> position_of(0.1, 0.1), position_of(0.5, 0.5), position_of(0.9, 0.5)
        ('north-west', 'centre', 'east')
    """
    column, row = (min(2, max(0, int(3 * v))) for v in (across, down))
    return '-'.join(word for word in (_DOWN[row], _ACROSS[column]) if word) or 'centre'


def _relation(part: _Part, other: _Part, footprint: Footprint) -> tuple[str, float]:
    """How a landmark lies to another, in a word, and the metres between them."""
    gap = float(part.body.distance(other.body))
    if part.body.area and part.body.intersection(other.body).area > 0.9 * part.body.area:
        return 'inside', 0.0
    if other.body.area and part.body.intersection(other.body).area > 0.9 * other.body.area:
        return 'around', 0.0
    if gap <= NEXT_TO * max(footprint.width, footprint.height):
        return 'next to', gap * footprint.gsd_m
    mine, theirs = part.body.centroid, other.body.centroid
    bearing = math.degrees(math.atan2(mine.x - theirs.x, theirs.y - mine.y)) % 360
    return _COMPASS[round(bearing / 45) % 8], gap * footprint.gsd_m
