"""What each operator of a program does, on the objects of a scene; every step is kept as evidence.

A set of objects is the rows of `SceneObjects` that are in it, rising.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from pydantic import BaseModel
from pyproj import Transformer

from grafalign.questions.conventions import Conventions, Shapes
from grafalign.questions.language import (
    All,
    AnyOf,
    Area,
    Choose,
    Classify,
    Compare,
    Count,
    Density,
    Distance,
    Exists,
    Filter,
    Find,
    ListWords,
    Nearest,
    Relate,
    Share,
    Value,
    unit_of,
)
from grafalign.questions.objects import Floats, Ints, SceneObjects, outline_pieces
from grafalign.questions.spelling import spelled

NOTHING = 'none of them'
"""Said where no word covers anything."""
_MOST_PLACES = 5
_LAST_BITS = 1e-9
"""Lengths and coordinates that differ by a smaller share are equal."""


@dataclass(frozen=True)
class Step:
    """What one operator found."""

    text: str
    """The operator in plain words."""
    value: bool | float | str | None
    """Its number, yes or no, or words; how many objects, where it gives objects; None for a distance to nothing."""
    unit: str = ''
    rows: Ints | None = None
    """The objects, where it gives some."""


@dataclass
class Answer:
    """An answer with its evidence."""

    text: str = ''
    value: bool | float | str | None = None
    unit: str = ''
    """`objects`, `m2`, `share`, `per km2`, `m`, or empty for yes, no and words."""
    steps: list[Step] = field(default_factory=list)
    """In the order in which they were computed."""

    @property
    def shown(self) -> list[Step]:
        """Sets of objects that the answer rests on in the end: those of which no later one is a part."""
        sets = [(step, step.rows) for step in self.steps if step.rows is not None and len(step.rows)]
        return [
            step
            for i, (step, rows) in enumerate(sets)
            if not any(np.isin(later, rows).all() for _, later in sets[i + 1 :])
        ]


def answer(program: Any, objects: SceneObjects, conventions: Conventions) -> Answer:
    """Run a program.

    Args:
        program: a checked `Program`.
        objects: of all its words.
        conventions: what sizes, shapes and nearness mean.

    Raises:
        InputError: a word was not looked for.
    """
    run = _Run(objects, conventions)
    given = Answer(steps=run.steps)
    match program:
        case Find() | Filter() | Relate() | Nearest():
            given.value, given.unit = float(len(run.rows(program))), 'objects'
            given.text = _places(objects, run.rows(program))
        case Count() | Area() | Share() | Density() | Distance():
            given.value, given.unit = run.number(program), unit_of(program)
            given.value = None if given.value == np.inf else given.value
        case Exists() | Compare() | All() | AnyOf():
            given.value = run.truth(program)
        case _:
            given.value = run.words(program)
    given.text = given.text or conventions.spelled(given.value, given.unit)
    return given


def _places(objects: SceneObjects, rows: Ints) -> str:
    """How many objects, and where the first of them are: latitude and longitude of a point in each."""
    points = shapely.get_coordinates(shapely.point_on_surface(objects.shapes[rows[:_MOST_PLACES]]))
    lon, lat = Transformer.from_crs(objects.crs, 'EPSG:4326', always_xy=True).transform(points[:, 0], points[:, 1])
    places = '; '.join(f'{y:.5f}, {x:.5f}' for x, y in zip(lon, lat, strict=True))
    more = ' ...' if len(rows) > _MOST_PLACES else ''
    return f'{len(rows):,} at {places}{more}' if len(rows) else 'there is none'


class _Run:
    """One run of a program; equal parts are computed once."""

    def __init__(self, objects: SceneObjects, conventions: Conventions) -> None:
        self.objects, self.conventions = objects, conventions
        self.steps: list[Step] = []
        self._rows: dict[BaseModel, Ints] = {}

    def rows(self, node: Find | Filter | Relate | Nearest) -> Ints:
        """A set of objects."""
        if node not in self._rows:
            found = self._found(node)
            self._rows[node] = found
            self.steps.append(Step(spelled(node), float(len(found)), 'objects', found))
        return self._rows[node]

    def _found(self, node: Find | Filter | Relate | Nearest) -> Ints:
        objects = self.objects
        match node:
            case Find(word=word):
                return objects.of(word)
            case Filter():
                rows = self.rows(node.of)
                areas = objects.areas_m2[rows]
                kept = np.ones(len(rows), bool)
                if node.size is not None:
                    kept &= self.conventions.has_size(areas, node.size)
                if node.shape is not None:
                    kept &= self.conventions.has_shape(objects.shapes[rows], node.shape)
                if node.at_least_m2 is not None:
                    kept &= areas >= node.at_least_m2
                if node.at_most_m2 is not None:
                    kept &= areas <= node.at_most_m2
                return rows[kept]
            case Relate():
                rows, others = self.rows(node.of), self.rows(node.to)
                if not len(rows) or not len(others):
                    return rows[:0]
                if node.relation == 'next to':
                    gaps = self._gaps(rows, others)
                    if node.within_m is None:
                        return rows[gaps < self.conventions.near_m * (1 - _LAST_BITS)]
                    return rows[gaps <= node.within_m * (1 + _LAST_BITS)]
                return rows[_beside(objects.shapes[rows], node.relation, objects.shapes[others])]
            case Nearest():
                rows, others = self.rows(node.of), self.rows(node.to)
                if not len(rows) or not len(others):
                    return rows[:0]
                gaps = self._gaps(rows, others)
                return rows[gaps.argmin() : gaps.argmin() + 1] if np.isfinite(gaps.min()) else rows[:0]

    def _gaps(self, rows: Ints, others: Ints) -> Floats:
        """Metres from each object to the nearest of others that is not itself, [N]; infinite where there is none."""
        objects = self.objects
        gaps = np.full(len(rows), np.inf)
        if len(np.intersect1d(rows, others)):
            tree = shapely.STRtree(objects.shapes[others])
            pairs, distances = tree.query_nearest(objects.shapes[rows], exclusive=True, return_distance=True)
            owners = pairs[0]
        else:  # no two overlap, so pieces of their outlines have the same gaps, and most are far enough to be passed by
            pieces, owner = outline_pieces(objects.shapes[rows])
            tree = shapely.STRtree(outline_pieces(objects.shapes[others])[0])
            pairs, distances = tree.query_nearest(pieces, return_distance=True, all_matches=False)
            owners = owner[pairs[0]]
        np.minimum.at(gaps, owners, distances)
        metres: Floats = gaps * objects.metres
        return metres

    def number(self, node: Count | Area | Share | Density | Distance | Value) -> float:
        """A number; infinite for a distance where there is nothing."""
        objects = self.objects
        match node:
            case Value():
                return node.value
            case Distance():
                rows, others = self.rows(node.of), self.rows(node.to)
                value = float(self._gaps(rows, others).min()) if len(rows) and len(others) else np.inf
            case Count():
                value = float(len(self.rows(node.of)))
            case Area():
                value = float(objects.areas_m2[self.rows(node.of)].sum())
            case Share():
                value = float(objects.areas_m2[self.rows(node.of)].sum() / max(objects.extent_m2, 1e-9))
            case Density():
                value = float(len(self.rows(node.of)) / max(objects.extent_m2 / 1e6, 1e-9))
        self.steps.append(Step(spelled(node), None if value == np.inf else value, unit_of(node)))
        return value

    def truth(self, node: Exists | Compare | All | AnyOf) -> bool:
        """Yes or no."""
        match node:
            case Exists():
                value = len(self.rows(node.of)) > 0
            case Compare():
                left, right = self.number(node.left), self.number(node.right)
                holds = {'less': left < right, 'equal': left == right, 'more': left > right}[node.than]
                value = holds and np.inf not in (left, right)  # a distance to nothing is neither less nor more
            case All():  # every part is evidence, so none is skipped
                parts = [self.truth(part) for part in node.of]
                value = all(parts)
            case AnyOf():
                parts = [self.truth(part) for part in node.of]
                value = any(parts)
        self.steps.append(Step(spelled(node), value))
        return value

    def words(self, node: Classify | ListWords | Choose) -> str:
        """Words."""
        match node:
            case Choose():
                value = node.then if self.truth(node.when) else node.otherwise
            case ListWords():
                there = [word for word in node.words if len(self.rows(Find(op='find', word=word)))]
                value = ' and '.join(there) if there else NOTHING
            case Classify():
                areas = self._areas(node.words, node.within)
                most = int(np.argmax(areas))
                value = node.words[most] if areas[most] > 0 else NOTHING
        self.steps.append(Step(spelled(node), value))
        return value

    def _areas(self, words: Sequence[str], within: Find | Filter | Relate | Nearest | None) -> list[float]:
        """Square metres that each word covers, of the scene or of some objects."""
        objects = self.objects
        land = None if within is None else shapely.union_all(objects.shapes[self.rows(within)])
        areas = []
        for word in words:
            rows = self.rows(Find(op='find', word=word))
            share = np.ones(len(rows))
            if land is not None:
                share = shapely.area(shapely.intersection(objects.shapes[rows], land)) / shapely.area(
                    objects.shapes[rows]
                )
            areas.append(float((objects.areas_m2[rows] * share).sum()))
            self.steps.append(Step(f'area of ({word})', areas[-1], 'm2'))
        return areas


def _beside(shapes: Shapes, relation: str, others: Shapes) -> npt.NDArray[np.bool_]:
    """Which shapes lie on a side of the middle of at least one of others, as a whole; bool [N]."""
    left, bottom, right, top = shapely.bounds(shapes).T
    boxes = shapely.bounds(others)
    slack = _LAST_BITS * np.abs(boxes).max()  # edges of pixels that are equal differ by their last bits
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    beside: npt.NDArray[np.bool_] = {
        'at the top of': bottom > y.min() + slack, 'on the right of': left > x.min() + slack,
        'at the bottom of': top < y.max() - slack, 'on the left of': right < x.max() - slack,
    }[relation]  # fmt: skip
    return beside
