"""The classes of a map: names, what they are asked for with, colours, and which of them are background.

combine: mean            # mean or max of a class's prompts
templates: ['a photo of {}.']
classes:
  - name: forest
    prompts: [forest, trees]
    colour: '#1b7837'
  - name: stadium
    thing: true            # for --refine sam
  - name: bare ground
    background: true
"""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from grafalign import console
from grafalign.calibration import Question
from grafalign.config import Settings, load_settings
from grafalign.encoders.ensemble import Vectors, ensemble
from grafalign.errors import InputError
from grafalign.zeroshot.prompts import PHOTO_TEMPLATES, check_templates, prompt_vectors

MOST_CLASSES = 65_534
"""Values of 16 bits, without the one for nodata."""
_ALIKE = 0.95
"""Cosine of two classes' vectors above which they can hardly be told apart."""


class ClassSettings(Settings):
    """One class."""

    name: str = Field(min_length=1)
    prompts: list[str] = []
    """What is asked for: words, put into the templates, or whole prompts; the name by default."""
    colour: Annotated[str, Field(pattern=r'^#[0-9a-fA-F]{6}$')] | None = None
    background: bool = False
    """Whether it is only there to compare with, and gets no polygons."""
    thing: bool = False
    """Whether it is made of single objects, which `--refine sam` outlines."""


class ClassesFile(Settings):
    """`classes.yaml`."""

    combine: Literal['mean', 'max'] = 'mean'
    """A class's score: that of the mean of its prompts' vectors, or the highest of its prompts' scores."""
    templates: list[str] = list(PHOTO_TEMPLATES)
    classes: list[ClassSettings] = Field(min_length=1)

    @model_validator(mode='after')
    def _distinct(self) -> Self:
        name, count = Counter(c.name for c in self.classes).most_common(1)[0]
        if count > 1:
            raise ValueError(f'`classes` names {name!r} {count} times')
        return self

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [c.name for c in self.classes]


@dataclass(frozen=True)
class MapClass:
    """One class of a map."""

    name: str
    colour: tuple[int, int, int]
    background: bool


@dataclass(frozen=True)
class MapClasses:
    """The classes of a map with their vectors; a class's value on the map is its number, from 0."""

    classes: tuple[MapClass, ...]
    vectors: Vectors
    """[P, D] in the order of the classes; unit, but for tuned words (`tuned.py`)."""
    class_of: npt.NDArray[np.int64]
    """[P]: rising; several vectors of one class where the highest score counts."""
    combine: Literal['mean', 'max']
    offsets: Vectors | None = None
    """Added to the scores of tuned words, [K], which are log odds then; None for words, whose scores are cosines."""

    @property
    def names(self) -> list[str]:
        """Names in the order of their values."""
        return [c.name for c in self.classes]


NONE = MapClass('none of these', (128, 128, 128), background=True)
"""What is none of a map's classes, where that is asked for."""


def question_of(classes: MapClasses) -> Question:
    """What fields are asked for."""
    return Question(classes.vectors, classes.class_of, classes.offsets)


def load_classes(words: Sequence[str]) -> ClassesFile:
    """Classes from a YAML file, or from words.

    Raises:
        GrafalignError: the file cannot be read, there are no words, too many, or one is there twice.
    """
    if len(words) == 1 and Path(words[0]).suffix.lower() in ('.yaml', '.yml'):
        content = load_settings(Path(words[0]), ClassesFile)
    else:
        names = [word.strip() for line in words for word in line.split(',') if word.strip()]
        if not names:
            raise InputError('There are no classes; give --words forest,water,town or --words classes.yaml.')
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise InputError(f'--words names {twice[0]!r} twice; give each class once.')
        content = ClassesFile(classes=[ClassSettings(name=name) for name in names])
    if len(content.classes) > MOST_CLASSES:
        raise InputError(
            f'{len(content.classes):,} classes are more than a map can hold ({MOST_CLASSES:,}); give fewer.'
        )
    check_templates(content.templates, 'templates')
    return content


def embed_classes(content: ClassesFile, encode: Callable[[Sequence[str]], Vectors]) -> MapClasses:
    """Classes with their vectors; two that are nearly the same are named in a warning.

    Args:
        content: names, prompts, colours.
        encode: texts to unit vectors.
    """
    rows: list[Vectors] = []
    class_of: list[int] = []
    for number, given in enumerate(content.classes):
        vectors = prompt_vectors(encode, given.prompts or [given.name], content.templates)  # [templates, prompts, D]
        vectors = ensemble(vectors) if content.combine == 'max' else ensemble(vectors.reshape(-1, 1, vectors.shape[-1]))
        rows.append(vectors)
        class_of += [number] * len(vectors)
    colours = _colours(len(content.classes))
    classes = tuple(
        MapClass(c.name, _rgb(c.colour) if c.colour else colours[i], c.background)
        for i, c in enumerate(content.classes)
    )
    made = MapClasses(classes, np.concatenate(rows), np.asarray(class_of), content.combine)
    for one, other, cosine in alike(made):
        console.log(
            f'{one!r} and {other!r} are nearly the same to the model (cosine {cosine:.2f}): which wins says little'
        )
    return made


def alike(classes: MapClasses) -> list[tuple[str, str, float]]:
    """Pairs of classes whose vectors are nearly the same, with their cosine; two kinds of background may be."""
    pairs = []
    for row in range(len(classes.vectors)):  # row by row: 65,534 classes have too many pairs to hold at once
        cosines = classes.vectors[row + 1 :] @ classes.vectors[row]
        for other in np.flatnonzero(cosines > _ALIKE) + row + 1:
            one, two = classes.class_of[row], classes.class_of[other]
            if one != two and not (classes.classes[one].background and classes.classes[two].background):
                pairs.append((classes.names[one], classes.names[two], float(cosines[other - row - 1])))
    return pairs


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(part, 16) for part in re.findall('..', colour[1:]))
    return red, green, blue


def _colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that stay apart: hues by the golden angle, in three steps of brightness."""
    shades = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.6 + 0.2 * (i % 2), (0.9, 0.65, 0.8)[i % 3])
        shades.append((round(255 * red), round(255 * green), round(255 * blue)))
    return shades
