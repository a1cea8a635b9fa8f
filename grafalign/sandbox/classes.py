"""The classes of the sandbox world: what they are called and what they are made of.

One table. `LAND_CLASSES` is what truth rasters count by; `MATERIALS` is what both renderers (from above and from
the ground) colour by. A class is a *layout* of materials, so its two appearances follow from one three-dimensional
scene and neither is drawn from the class name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True)
class LandClass:
    """One class of the world."""

    name: str
    """The primary name, used in prompts."""
    synonyms: tuple[str, ...]
    """Other words people use for it in captions."""
    is_object: bool = False
    """True for things smaller than a tile, False for areas."""


LAND_CLASSES: tuple[LandClass, ...] = (
    LandClass('water', ('open water', 'a lake', 'the sea')),
    LandClass('broadleaf forest', ('deciduous woodland', 'broadleaf trees')),
    LandClass('conifer forest', ('pine forest', 'spruce trees')),
    LandClass('meadow', ('pasture', 'grassland')),
    LandClass('cropland', ('arable field', 'farm field')),
    LandClass('orchard', ('fruit trees', 'apple orchard')),
    LandClass('vineyard', ('rows of vines', 'grape vines')),
    LandClass('beach', ('sandy beach', 'sand by the sea')),
    LandClass('bare rock', ('rocky mountain', 'rock face')),
    LandClass('marsh', ('wetland', 'reeds and pools')),
    LandClass('suburb', ('detached houses', 'family houses with gardens')),
    LandClass('old town', ('town centre', 'terraced houses')),
    LandClass('tower blocks', ('apartment towers', 'high rise housing')),
    LandClass('warehouses', ('industrial halls', 'logistics depot')),
    LandClass('oil tanks', ('tank farm', 'storage tanks'), True),
    LandClass('stadium', ('football stadium', 'sports arena'), True),
    LandClass('solar farm', ('solar panels', 'photovoltaic plant'), True),
    LandClass('airport runway', ('runway', 'airfield'), True),
    LandClass('marina', ('sailing boats', 'yacht harbour'), True),
    LandClass('roundabout', ('traffic circle', 'circular junction'), True),
    LandClass('golf course', ('golf green', 'fairway and bunkers'), True),
    LandClass('quarry', ('open pit', 'gravel pit'), True),
    LandClass('greenhouses', ('glasshouses', 'market garden under glass'), True),
    LandClass('parking lot', ('parked cars', 'car park'), True),
)
CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in LAND_CLASSES)


@dataclass(frozen=True)
class Tint:
    """A colour that land can have besides that of its materials."""

    name: str
    overhead: tuple[float, float, float, float]
    """Reflectance (red, green, blue, near infrared) that is mixed in."""
    ground: tuple[float, float, float]
    """sRGB (0-1) that is mixed in."""


TINTS: tuple[Tint, ...] = (
    Tint('red', (0.45, 0.05, 0.05, 0.3), (0.85, 0.08, 0.08)),
    Tint('orange', (0.50, 0.22, 0.02, 0.3), (0.95, 0.50, 0.05)),
    Tint('yellow', (0.50, 0.45, 0.05, 0.3), (0.95, 0.90, 0.10)),
    Tint('blue', (0.04, 0.08, 0.45, 0.3), (0.08, 0.15, 0.85)),
    Tint('purple', (0.26, 0.04, 0.40, 0.3), (0.50, 0.08, 0.75)),
    Tint('pink', (0.55, 0.22, 0.38, 0.3), (1.00, 0.45, 0.70)),
    Tint('white', (0.60, 0.60, 0.60, 0.6), (1.00, 1.00, 1.00)),
    Tint('black', (0.01, 0.01, 0.01, 0.02), (0.02, 0.02, 0.02)),
)
TINT_SHARE = 0.5
"""Share of a surface's colour that is its tint."""


def kinds_of(tints: int) -> tuple[LandClass, ...]:
    """The classes of a world whose land has this many colours: each class plain, then each in each tint.

    The kind of class c in colour t has number c + 24 t.

    Example:
        >>> kinds_of(2)[24].name, kinds_of(2)[24].synonyms
        ('red water', ('open red water', 'a red lake', 'the red sea'))
    """
    made = list(LAND_CLASSES)
    for tint in TINTS[: tints - 1]:
        for c in LAND_CLASSES:
            words = tuple(_tinted(word, tint.name) for word in (c.name, *c.synonyms))
            made.append(LandClass(words[0], words[1:], c.is_object))
    return tuple(made)


def _tinted(words: str, tint: str) -> str:
    """A colour comes behind an article."""
    first, _, rest = words.partition(' ')
    return f'{first} {tint} {rest}' if first in ('a', 'the', 'open') else f'{tint} {words}'


CLASS_ID: dict[str, int] = {name: i for i, name in enumerate(CLASS_NAMES)}


class Material(IntEnum):
    """Surface materials; the row of every colour table below."""

    WATER = 0
    SAND = 1
    ROCK = 2
    GRASS = 3
    CROP = 4
    SOIL = 5
    LEAF = 6
    NEEDLE = 7
    FRUIT_TREE = 8
    VINE = 9
    REED = 10
    ASPHALT = 11
    PAVING = 12
    TILE_ROOF = 13
    FLAT_ROOF = 14
    TOWER = 15
    HALL = 16
    TANK = 17
    STAND = 18
    PITCH = 19
    PANEL = 20
    CONCRETE = 21
    HULL = 22
    BUNKER = 23
    GRAVEL = 24
    GLASS = 25
    CAR = 26
    GARDEN = 27
    PATH = 28
    MARKING = 29


# Reflectance (red, green, blue, near infrared) seen from above, in summer and in winter.
OVERHEAD: dict[Material, tuple[tuple[float, ...], tuple[float, ...]]] = {
    Material.WATER: ((0.03, 0.06, 0.09, 0.02), (0.04, 0.06, 0.08, 0.02)),
    Material.SAND: ((0.36, 0.31, 0.23, 0.42), (0.33, 0.29, 0.22, 0.40)),
    Material.ROCK: ((0.22, 0.20, 0.19, 0.26), (0.26, 0.25, 0.25, 0.28)),
    Material.GRASS: ((0.08, 0.13, 0.05, 0.42), (0.13, 0.14, 0.08, 0.28)),
    Material.CROP: ((0.19, 0.18, 0.08, 0.38), (0.18, 0.14, 0.10, 0.22)),
    Material.SOIL: ((0.20, 0.15, 0.11, 0.25), (0.17, 0.13, 0.10, 0.22)),
    Material.LEAF: ((0.04, 0.08, 0.03, 0.45), (0.12, 0.10, 0.07, 0.22)),
    Material.NEEDLE: ((0.025, 0.05, 0.03, 0.28), (0.03, 0.05, 0.035, 0.25)),
    Material.FRUIT_TREE: ((0.06, 0.11, 0.04, 0.44), (0.14, 0.12, 0.09, 0.22)),
    Material.VINE: ((0.09, 0.14, 0.05, 0.40), (0.16, 0.12, 0.09, 0.20)),
    Material.REED: ((0.11, 0.12, 0.06, 0.30), (0.17, 0.14, 0.08, 0.24)),
    Material.ASPHALT: ((0.10, 0.10, 0.10, 0.12), (0.10, 0.10, 0.10, 0.12)),
    Material.PAVING: ((0.21, 0.20, 0.18, 0.24), (0.20, 0.19, 0.18, 0.23)),
    Material.TILE_ROOF: ((0.27, 0.13, 0.09, 0.30), (0.25, 0.13, 0.10, 0.28)),
    Material.FLAT_ROOF: ((0.19, 0.18, 0.17, 0.22), (0.19, 0.18, 0.17, 0.22)),
    Material.TOWER: ((0.26, 0.26, 0.25, 0.28), (0.26, 0.26, 0.25, 0.28)),
    Material.HALL: ((0.38, 0.39, 0.41, 0.42), (0.38, 0.39, 0.41, 0.42)),
    Material.TANK: ((0.50, 0.50, 0.48, 0.52), (0.50, 0.50, 0.48, 0.52)),
    Material.STAND: ((0.31, 0.30, 0.33, 0.34), (0.31, 0.30, 0.33, 0.34)),
    Material.PITCH: ((0.06, 0.16, 0.05, 0.48), (0.07, 0.15, 0.05, 0.42)),
    Material.PANEL: ((0.04, 0.05, 0.11, 0.08), (0.04, 0.05, 0.11, 0.08)),
    Material.CONCRETE: ((0.30, 0.29, 0.27, 0.33), (0.29, 0.29, 0.27, 0.32)),
    Material.HULL: ((0.55, 0.55, 0.56, 0.55), (0.50, 0.50, 0.51, 0.50)),
    Material.BUNKER: ((0.42, 0.38, 0.28, 0.46), (0.40, 0.36, 0.28, 0.44)),
    Material.GRAVEL: ((0.33, 0.29, 0.24, 0.36), (0.31, 0.28, 0.24, 0.34)),
    Material.GLASS: ((0.33, 0.38, 0.39, 0.40), (0.34, 0.38, 0.39, 0.40)),
    Material.CAR: ((0.24, 0.20, 0.26, 0.26), (0.24, 0.20, 0.26, 0.26)),
    Material.GARDEN: ((0.08, 0.12, 0.06, 0.36), (0.12, 0.12, 0.08, 0.26)),
    Material.PATH: ((0.24, 0.21, 0.16, 0.28), (0.22, 0.19, 0.15, 0.26)),
    Material.MARKING: ((0.45, 0.45, 0.44, 0.46), (0.45, 0.45, 0.44, 0.46)),
}

# sRGB (0-1) as a person sees it: the ground or top surface, and the upright side, in summer. Winter is derived.
GROUND: dict[Material, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    Material.WATER: ((0.25, 0.42, 0.55), (0.25, 0.42, 0.55)),
    Material.SAND: ((0.87, 0.78, 0.58), (0.80, 0.70, 0.52)),
    Material.ROCK: ((0.52, 0.50, 0.48), (0.46, 0.44, 0.43)),
    Material.GRASS: ((0.40, 0.60, 0.25), (0.36, 0.55, 0.22)),
    Material.CROP: ((0.72, 0.66, 0.28), (0.68, 0.60, 0.25)),
    Material.SOIL: ((0.50, 0.37, 0.26), (0.46, 0.34, 0.24)),
    Material.LEAF: ((0.30, 0.33, 0.16), (0.26, 0.50, 0.16)),
    Material.NEEDLE: ((0.34, 0.27, 0.18), (0.09, 0.25, 0.17)),
    Material.FRUIT_TREE: ((0.42, 0.58, 0.26), (0.42, 0.58, 0.20)),
    Material.VINE: ((0.50, 0.44, 0.28), (0.36, 0.52, 0.14)),
    Material.REED: ((0.58, 0.55, 0.28), (0.64, 0.57, 0.30)),
    Material.ASPHALT: ((0.36, 0.36, 0.38), (0.36, 0.36, 0.38)),
    Material.PAVING: ((0.66, 0.62, 0.56), (0.60, 0.57, 0.52)),
    Material.TILE_ROOF: ((0.66, 0.34, 0.22), (0.90, 0.84, 0.70)),
    Material.FLAT_ROOF: ((0.60, 0.58, 0.55), (0.76, 0.58, 0.44)),
    Material.TOWER: ((0.66, 0.66, 0.66), (0.72, 0.73, 0.76)),
    Material.HALL: ((0.80, 0.82, 0.85), (0.62, 0.70, 0.80)),
    Material.TANK: ((0.90, 0.90, 0.88), (0.93, 0.92, 0.88)),
    Material.STAND: ((0.60, 0.58, 0.62), (0.46, 0.40, 0.60)),
    Material.PITCH: ((0.28, 0.66, 0.22), (0.28, 0.66, 0.22)),
    Material.PANEL: ((0.14, 0.18, 0.36), (0.12, 0.16, 0.34)),
    Material.CONCRETE: ((0.74, 0.73, 0.70), (0.70, 0.69, 0.66)),
    Material.HULL: ((0.95, 0.95, 0.96), (0.95, 0.95, 0.97)),
    Material.BUNKER: ((0.93, 0.87, 0.70), (0.90, 0.84, 0.68)),
    Material.GRAVEL: ((0.74, 0.67, 0.57), (0.68, 0.60, 0.50)),
    Material.GLASS: ((0.80, 0.90, 0.90), (0.72, 0.88, 0.86)),
    Material.CAR: ((0.60, 0.20, 0.20), (0.70, 0.18, 0.20)),
    Material.GARDEN: ((0.42, 0.60, 0.30), (0.26, 0.46, 0.20)),
    Material.PATH: ((0.70, 0.62, 0.48), (0.70, 0.62, 0.48)),
    Material.MARKING: ((0.95, 0.95, 0.93), (0.95, 0.95, 0.93)),
}
