"""From the tags of a map's object to what people call it, and whether it can be seen from above."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from grafalign.config import read_yaml

TABLE = Path(__file__).with_name('kinds.yaml')
REFINED = {
    ('power', 'generator', 'generator:source', 'solar'): 'solar panels',
    ('power', 'generator', 'generator:source', 'wind'): 'wind turbine',
    ('power', 'plant', 'plant:source', 'solar'): 'solar farm',
    ('power', 'plant', 'plant:source', 'wind'): 'wind farm',
    ('leisure', 'pitch', 'sport', 'soccer'): 'football pitch',
    ('leisure', 'pitch', 'sport', 'tennis'): 'tennis court',
    ('leisure', 'pitch', 'sport', 'basketball'): 'basketball court',
    ('leisure', 'pitch', 'sport', 'baseball'): 'baseball field',
    ('leisure', 'pitch', 'sport', 'american_football'): 'American football field',
    ('natural', 'wetland', 'wetland', 'marsh'): 'marsh',
    ('natural', 'wetland', 'wetland', 'saltmarsh'): 'salt marsh',
    ('natural', 'wetland', 'wetland', 'tidalflat'): 'tidal flat',
    ('natural', 'wetland', 'wetland', 'mangrove'): 'mangrove swamp',
    ('natural', 'wetland', 'wetland', 'reedbed'): 'reed bed',
    ('natural', 'water', 'water', 'pond'): 'pond',
    ('natural', 'water', 'water', 'reservoir'): 'reservoir',
    ('natural', 'water', 'water', 'river'): 'river',
    ('natural', 'water', 'water', 'canal'): 'canal',
    ('natural', 'water', 'water', 'basin'): 'basin',
    ('natural', 'water', 'water', 'lagoon'): 'lagoon',
    ('natural', 'wood', 'leaf_type', 'needleleaved'): 'conifer wood',
    ('natural', 'wood', 'leaf_type', 'broadleaved'): 'broadleaf wood',
    ('landuse', 'forest', 'leaf_type', 'needleleaved'): 'conifer forest',
    ('landuse', 'forest', 'leaf_type', 'broadleaved'): 'broadleaf forest',
    ('amenity', 'place_of_worship', 'religion', 'christian'): 'church',
    ('amenity', 'place_of_worship', 'religion', 'muslim'): 'mosque',
    ('amenity', 'place_of_worship', 'religion', 'hindu'): 'temple',
    ('amenity', 'place_of_worship', 'religion', 'buddhist'): 'temple',
    ('man_made', 'works', 'product', 'cement'): 'cement works',
}
"""Kinds that a second tag makes more exact."""
_GONE = ('abandoned', 'demolished', 'razed', 'removed', 'destroyed', 'proposed', 'planned', 'was', 'ruins:building')
_UNDER = ('underground', 'underwater', 'indoor')


@dataclass(frozen=True)
class Kind:
    """What an object is called, and its size where the map gives none."""

    name: str
    key: str
    """`natural=beach`"""
    point_m: float | None = None
    """Size of one that is a point; None: it cannot be told."""
    line_m: float | None = None
    """Width of one that is a line."""


@functools.cache
def table() -> dict[str, dict[str, Kind]]:
    """The table that ships: key, value, kind."""
    content: dict[str, dict[str, Any]] = read_yaml(TABLE)
    found: dict[str, dict[str, Kind]] = {}
    for key, values in content.items():
        for value, entry in values.items():
            row = entry if isinstance(entry, dict) else {'kind': entry}
            kind = Kind(str(row['kind']), f'{key}={value}', row.get('point_m'), row.get('line_m'))
            found.setdefault(key, {})[str(value)] = kind
    return found


def kind_of(tags: Mapping[str, str]) -> Kind | None:
    """The kind of an object, None where it is no landmark.

    Args:
        tags: OpenStreetMap's tags.

    Example:
        >>> kind_of({'leisure': 'pitch', 'sport': 'tennis'}).name
        'tennis court'
        >>> kind_of({'boundary': 'administrative', 'name': 'Sintra'}) is None
        True
    """
    for key, kinds in table().items():
        value = tags.get(key)
        if value is None:
            continue
        kind = kinds.get(value) or (kinds.get('yes') if key == 'building' and value != 'no' else None)
        if kind is None:
            continue
        finer = next(
            (n for (k, v, k2, v2), n in REFINED.items() if (k, v) == (key, value) and tags.get(k2) == v2), None
        )
        return kind if finer is None else Kind(finer, f'{kind.key}', kind.point_m, kind.line_m)
    return None


def hidden(tags: Mapping[str, str]) -> str | None:
    """Why an object cannot be seen from above, whatever its kind; None where it can.

    Args:
        tags: OpenStreetMap's tags.
    """
    if tags.get('tunnel') not in (None, 'no') or tags.get('covered') == 'yes':
        return 'in a tunnel or covered'
    if tags.get('location') in _UNDER or tags.get('indoor') not in (None, 'no') or tags.get('parking') == 'underground':
        return 'underground or indoors'
    try:
        if float(tags.get('layer', '0')) < 0 or float(tags.get('level', '0')) < 0:
            return 'underground or indoors'
    except ValueError:
        pass
    if any(tags.get(word) not in (None, 'no') or any(k.startswith(f'{word}:') for k in tags) for word in _GONE):
        return 'gone, or not yet built'
    if tags.get('intermittent') == 'yes' or (tags.get('access') == 'no' and 'highway' in tags):
        return 'not always there'
    return None


def told_date(text: str | None) -> date | None:
    """The first day that a `start_date` means, None where it means none.

    Example:
        >>> told_date('2019'), told_date('2019-06'), told_date('~1900')
        (datetime.date(2019, 1, 1), datetime.date(2019, 6, 1), None)
    """
    found = re.fullmatch(r'(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?', (text or '').strip())
    if found is None:
        return None
    try:
        return date(int(found[1]), int(found[2] or 1), int(found[3] or 1))
    except ValueError:
        return None
