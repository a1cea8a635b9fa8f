"""The objects of a program's words on a field: its class map, with everything else as background.

What a cell is of is only known by comparison. Where a person gives classes, the words of a question must be among
them, and are compared with the others. Otherwise they are compared with the words that ship
(`calibration/contrasting_words.yaml`), but for those that ask for the same: whose scores rise and fall with a word's
own over the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pyproj import CRS

from grafalign.calibration import Calibration, contrasting_words
from grafalign.calibration.contrast import apart
from grafalign.encoders.ensemble import Vectors, ensemble
from grafalign.errors import InputError
from grafalign.fields import Field
from grafalign.maps import ClassesFile, MapClasses, TunedWords, embed_classes
from grafalign.maps.classes import ClassSettings, question_of
from grafalign.maps.cog import as_bytes
from grafalign.maps.labels import UNKNOWN
from grafalign.maps.make import map_rows
from grafalign.maps.regions import Codes
from grafalign.maps.write import uncalibrated
from grafalign.questions.conventions import Conventions
from grafalign.questions.grammar import singular
from grafalign.questions.language import find_words
from grafalign.questions.objects import SceneObjects, objects_of
from grafalign.zeroshot.prompts import prompt_vectors

Encode: TypeAlias = Callable[[Sequence[str]], Vectors]
_ROWS = 1024


@dataclass(frozen=True)
class Legend:
    """The classes of a question's map."""

    classes: MapClasses
    calibration: Calibration
    number_of: dict[str, int]
    """Class of each word of the question."""

    @property
    def compared(self) -> list[str]:
        """Classes that no word of the question asks for."""
        asked = set(self.number_of.values())
        return [name for number, name in enumerate(self.classes.names) if number not in asked]


def legend_of(
    program: Any, field: Field, encode: Encode, temperature: float, content: ClassesFile | TunedWords | None = None
) -> Legend:
    """What a field is asked for.

    Args:
        program: a checked `Program`.
        field: the field.
        encode: texts to unit vectors, by the field's model.
        temperature: of confidences.
        content: a person's own classes.

    Raises:
        GrafalignError: the program has a word that is none of them, or there is nothing to compare with.
    """
    words = find_words(program)
    if isinstance(content, TunedWords):
        content.check(field.plan, field.path)
        names = [c.name for c in content.about.classes]
        return Legend(content.classes, uncalibrated(1.0, len(names)), class_numbers(words, names))
    if content is None:
        content = _with_contrast(words, field, encode)
    numbers = class_numbers(words, [c.name for c in content.classes])
    classes = embed_classes(content, encode)
    return Legend(classes, uncalibrated(temperature, len(classes.classes)), numbers)


def class_numbers(words: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Which class each word names: exactly, else whatever its case and number.

    Raises:
        InputError: none, or more than one.
    """
    found = {}
    for word in words:
        same = [i for i, name in enumerate(names) if name.casefold() == word.casefold()]
        alike = [i for i, name in enumerate(names) if singular(name.casefold()) == singular(word.casefold())]
        chosen = same or alike
        if not chosen:
            raise InputError(f'--words has no {word!r}; ask for {", ".join(names[:30])}, or add it.')
        if len(chosen) > 1:
            raise InputError(f'{word!r} may be {" or ".join(names[i] for i in chosen)} of --words; name one exactly.')
        found[word] = chosen[0]
    return found


def _with_contrast(words: Sequence[str], field: Field, encode: Encode) -> ClassesFile:
    """Classes of words, and the words that ship as background.

    Raises:
        InputError: the model cannot tell the words from anything.
    """
    asked = list({singular(word.casefold()): word for word in words}.values())
    content = ClassesFile(classes=[ClassSettings(name=word) for word in asked])
    contrasting = contrasting_words()
    vectors = [ensemble(prompt_vectors(encode, w, content.templates)) for w in (asked, contrasting)]
    sample = field.sample()
    different = apart(sample @ vectors[0].T, sample @ vectors[1].T)
    taken = {singular(word.casefold()) for word in asked}
    kept = [
        word
        for word, other in zip(contrasting, different, strict=True)
        if other and singular(word.casefold().removeprefix('a ')) not in taken
    ]
    if not kept:
        raise InputError(
            f'The model scores {", ".join(asked)} as it scores everything else in {field.path}; give --words, your own '
            'classes, to compare with.'
        )
    return ClassesFile(classes=[*content.classes, *(ClassSettings(name=word, background=True) for word in kept)])


def look(field: Field, legend: Legend, conventions: Conventions, min_area_m2: float = 0.0) -> SceneObjects:
    """Objects of all words of a question.

    Args:
        field: the field.
        legend: what it is asked for.
        conventions: by which areas and distances are measured.
        min_area_m2: smaller objects are left out.

    Raises:
        GrafalignError: there are too many objects, or a chunk of the field is damaged.
    """
    code_of = np.zeros(len(legend.classes.classes) - UNKNOWN, np.uint16)
    for code, number in enumerate(sorted(set(legend.number_of.values())), start=1):
        code_of[number - UNKNOWN] = code
    codes = {word: int(code_of[number - UNKNOWN]) for word, number in legend.number_of.items()}
    grid = field.geobox
    tops = range(0, grid.shape[0], _ROWS)
    missing = sum(int((field.source(slice(top, min(top + _ROWS, grid.shape[0]))) == 0).sum()) for top in tops)
    return objects_of(
        _strips(field, legend, code_of), codes, (grid.shape[0], grid.shape[1]), grid.affine, CRS(str(grid.crs)),
        conventions, min_area_m2=min_area_m2, missing=missing, name=str(field.path),
    )  # fmt: skip


def _strips(field: Field, legend: Legend, code_of: Codes) -> Iterator[tuple[Codes, npt.NDArray[np.uint8]]]:
    """Rows of the class map, as codes of words, and how probable they are."""
    with torch.inference_mode():
        for part in map_rows(field, question_of(legend.classes), legend.calibration):
            yield code_of[part.labels - UNKNOWN], as_bytes(part.chance, part.labels == UNKNOWN)
