"""Programs that answer questions about a scene: a small typed language, written as JSON.

A program is an operator with its arguments, which are operators again:

    {"op": "count", "of": {"op": "relate", "relation": "next to",
                           "of": {"op": "filter", "of": {"op": "find", "word": "building"}, "size": "small"},
                           "to": {"op": "find", "word": "road"}}}

Operators give objects (find, filter, relate, nearest), a number with its unit (count, area, share, density, distance,
number), yes or no (exists, compare, all, any), or words (classify, list, choose). What goes where is checked before
anything runs, and so are depth and size: a program can come from a stranger or from a language model. Programs are
data: `evaluate.py` says what each operator does, and nothing in them is ever run as code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, Field, model_validator

from grafalign.config import Settings

LONGEST_WORD = 100
Size = Literal['small', 'medium', 'large']
Shape = Literal['square', 'rectangular', 'circular']
Relation = Literal['at the top of', 'on the right of', 'at the bottom of', 'on the left of', 'next to']
Unit = Literal['objects', 'm2', 'share', 'per km2', 'm']


def _plain_word(word: str) -> str:
    word = ' '.join(word.split())
    if not word or not word.isprintable():
        raise ValueError('a word must have letters, and no control characters')
    return word


Word = Annotated[str, Field(max_length=LONGEST_WORD), AfterValidator(_plain_word)]


class Find(Settings):
    """All objects of a word."""

    op: Literal['find']
    word: Word


class Filter(Settings):
    """Those objects that have a size or a shape."""

    op: Literal['filter']
    of: Objects
    size: Size | None = None
    """In square metres, as the conventions say."""
    shape: Shape | None = None
    at_least_m2: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    at_most_m2: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode='after')
    def _something(self) -> Filter:
        if all(limit is None for limit in (self.size, self.shape, self.at_least_m2, self.at_most_m2)):
            raise ValueError('`filter` says nothing; give size, shape, at_least_m2 or at_most_m2')
        return self


class Relate(Settings):
    """Those objects that lie so to at least one of others."""

    op: Literal['relate']
    of: Objects
    relation: Relation
    to: Objects
    within_m: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """What "next to" means, in metres; as the conventions say by default."""

    @model_validator(mode='after')
    def _only_near(self) -> Relate:
        if self.within_m is not None and self.relation != 'next to':
            raise ValueError(f'`within_m` is for "next to", not for "{self.relation}"; leave it out')
        return self


class Nearest(Settings):
    """The object that is nearest to any of others."""

    op: Literal['nearest']
    of: Objects
    to: Objects


class Count(Settings):
    """How many objects there are."""

    op: Literal['count']
    of: Objects


class Area(Settings):
    """Square metres that objects cover."""

    op: Literal['area']
    of: Objects


class Share(Settings):
    """Share of the scene that objects cover."""

    op: Literal['share']
    of: Objects


class Density(Settings):
    """Objects in a square kilometre of the scene."""

    op: Literal['density']
    of: Objects


class Distance(Settings):
    """Metres between the two objects that are nearest to each other."""

    op: Literal['distance']
    of: Objects
    to: Objects


class Value(Settings):
    """A number, to compare with."""

    op: Literal['number']
    value: Annotated[float, Field(allow_inf_nan=False)]
    unit: Unit = 'objects'


class Exists(Settings):
    """Whether there is any object."""

    op: Literal['exists']
    of: Objects


class Compare(Settings):
    """Whether one number is less than, equal to or more than another of the same unit."""

    op: Literal['compare']
    left: Number
    than: Literal['less', 'equal', 'more']
    right: Number

    @model_validator(mode='after')
    def _one_unit(self) -> Compare:
        left, right = unit_of(self.left), unit_of(self.right)
        if left != right:
            raise ValueError(f'`compare` has {left} on the left and {right} on the right; give the same unit')
        return self


class All(Settings):
    """Whether all of these hold."""

    op: Literal['all']
    of: Annotated[tuple[Truth, ...], Field(min_length=1)]


class AnyOf(Settings):
    """Whether one of these holds."""

    op: Literal['any']
    of: Annotated[tuple[Truth, ...], Field(min_length=1)]


class Classify(Settings):
    """Which of some words covers most of the scene, or of objects in it."""

    op: Literal['classify']
    words: Annotated[tuple[Word, ...], Field(min_length=2)]
    within: Objects | None = None


class ListWords(Settings):
    """Which of some words are there."""

    op: Literal['list']
    words: Annotated[tuple[Word, ...], Field(min_length=1)]


class Choose(Settings):
    """One word if something holds, and another if not."""

    op: Literal['choose']
    when: Truth
    then: Word
    otherwise: Word


Objects: TypeAlias = Annotated[Find | Filter | Relate | Nearest, Field(discriminator='op')]
Number: TypeAlias = Annotated[Count | Area | Share | Density | Distance | Value, Field(discriminator='op')]
Truth: TypeAlias = Annotated[Exists | Compare | All | AnyOf, Field(discriminator='op')]
Words: TypeAlias = Annotated[Classify | ListWords | Choose, Field(discriminator='op')]
Program: TypeAlias = Annotated[
    Find | Filter | Relate | Nearest
    | Count | Area | Share | Density | Distance
    | Exists | Compare | All | AnyOf
    | Classify | ListWords | Choose,
    Field(discriminator='op'),
]  # fmt: skip
"""Any operator but a bare number answers a question."""
for _model in (
    Filter, Relate, Nearest, Count, Area, Share, Density, Distance, Exists, Compare, All, AnyOf, Classify, Choose,
):  # fmt: skip
    _model.model_rebuild()
_UNITS: dict[type[BaseModel], Unit] = {
    Count: 'objects', Area: 'm2', Share: 'share', Density: 'per km2', Distance: 'm',
}  # fmt: skip


def unit_of(number: Number) -> Unit:
    """The unit of a number."""
    return number.unit if isinstance(number, Value) else _UNITS[type(number)]


def find_words(program: BaseModel) -> list[str]:
    """Words that a program looks for, each once, in its order."""
    found: dict[str, None] = {}
    for node in walk(program):
        if isinstance(node, Find):
            found[node.word] = None
        elif isinstance(node, Classify | ListWords):
            found.update(dict.fromkeys(node.words))
    return list(found)


def walk(program: BaseModel) -> Iterator[BaseModel]:
    """All operators of a program, from the outside in."""
    yield program
    for _, value in program:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, BaseModel):
                yield from walk(inner)
