"""An object of a map, from whatever source."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from grafalign.captions.landmarks.kinds import Kind


@dataclass(frozen=True)
class MapObject:
    """What a map says of a thing."""

    object_id: str
    """Equal for pieces of one object: `osm/way/123`."""
    kind: Kind
    name: str | None
    geometry: Any
    """Shapely, longitude and latitude in degrees."""
    hidden: str | None = None
    """Why it cannot be seen from above."""
    since: date | None = None
    """The first day that it is known to have been there, or to have been put on the map."""
    licence: str = 'ODbL-1.0'
    credit: str = 'OpenStreetMap contributors'
