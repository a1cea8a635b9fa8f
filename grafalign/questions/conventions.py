"""What small, square, next to and an area mean: conventions that a question leaves open.

`plain` is what a person means: metres and square metres on the ground. `rsvqa` is what the answers of RSVQA were made
with, by the published code (https://github.com/syvlo/RSVQA, AutomaticDB/ConstructQuestions.py): all in units of
EPSG:3857, which are longer than metres by 1 / cos(latitude), "next to" below 1,000 of them, and shapes as that code
tests them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import shapely

from grafalign.errors import InputError
from grafalign.questions.language import Shape, Size

Shapes: TypeAlias = npt.NDArray[np.object_]
Mask: TypeAlias = npt.NDArray[np.bool_]
_FILLED = 0.85
"""Share of its rectangle, or its circle, that an object of pixels must fill."""
_SQUARE = 1.25
"""Longest side of a square, in shortest ones."""


@dataclass(frozen=True)
class Conventions:
    """Meanings that a question leaves open."""

    name: str
    near_m: float
    """Objects at a smaller distance are next to each other."""
    has_shape: Callable[[Shapes, Shape], Mask]
    small_below_m2: float = 100.0
    large_from_m2: float = 500.0
    mercator: bool = False
    """Whether units of EPSG:3857 stand for metres."""

    def has_size(self, areas_m2: npt.NDArray[np.float64], size: Size) -> Mask:
        """Which areas are of a size, bool [N]."""
        if size == 'small':
            return areas_m2 < self.small_below_m2
        if size == 'large':
            return areas_m2 >= self.large_from_m2
        return (areas_m2 >= self.small_below_m2) & (areas_m2 < self.large_from_m2)

    def spelled(self, value: bool | float | str | None, unit: str) -> str:
        """An answer as it is written."""
        if value is None:
            return 'there is none'
        if isinstance(value, bool):
            return 'yes' if value else 'no'
        if isinstance(value, str):
            return value
        if self.mercator and unit == 'm2':
            return f'{int(round(value, 3))}m2'  # a sum of areas can fall short of a whole number by its last bit
        return {
            'objects': f'{value:.0f}', 'm2': f'{value:,.0f} m²', 'share': f'{100 * value:.1f} %',
            'per km2': f'{value:.3g} per km²', 'm': f'{value:,.0f} m',
        }[unit]  # fmt: skip


def _plain_shape(shapes: Shapes, shape: Shape) -> Mask:
    """Of outlines that follow pixels: how far they fill their smallest rectangle or circle."""
    areas = shapely.area(shapes)
    if shape == 'circular':
        radius = shapely.minimum_bounding_radius(shapes)
        return np.asarray(areas >= _FILLED * np.pi * radius**2)
    around = shapely.oriented_envelope(shapes)
    filled = areas >= _FILLED * shapely.area(around)
    if shape == 'rectangular':
        return np.asarray(filled)
    sides = [shapely.get_coordinates(one)[:3] for one in around]
    lengths = np.array([np.sort(np.hypot(*np.diff(corners, axis=0).T)) for corners in sides]).reshape(-1, 2)
    return np.asarray(filled & (lengths[:, 1] <= _SQUARE * lengths[:, 0]))


def _rsvqa_shape(shapes: Shapes, shape: Shape) -> Mask:
    """As the published code tests: what is circular passes for any shape, and fewer than eight points are a rectangle.

    Its test for squares holds for nothing else.
    """
    areas, lengths = shapely.area(shapes), shapely.length(shapes)
    circle = lengths**2 / (4 * np.pi)
    passes = (circle > 0.9 * areas) & (circle < 1.1 * areas)
    if shape == 'rectangular':
        points = shapely.get_num_coordinates(shapely.get_exterior_ring(shapes))
        passes = passes | (points < 8)
    if shape == 'square':
        ratio = areas / lengths
        passes = passes | ((ratio > 0.9 * lengths) & (ratio < 1.1 * lengths))
    return np.asarray(passes)


PLAIN = Conventions('plain', 30.0, _plain_shape)
RSVQA = Conventions('rsvqa', 1000.0, _rsvqa_shape, mercator=True)


def conventions_of(name: str) -> Conventions:
    """Conventions by name.

    Raises:
        InputError: there are none of that name.
    """
    for known in (PLAIN, RSVQA):
        if known.name == name:
            return known
    raise InputError(f'There are no --conventions {name!r}; give plain or rsvqa.')
