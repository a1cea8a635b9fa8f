"""Questions about pictures of class maps, with RSVQA's templates, and their answers counted pixel by pixel.

The answers are computed from pixels alone, with none of grafalign's questions: objects are connected pixels of a class,
their area is their number of pixels, the gap between two is searched over all pairs of their pixels. What the words
mean follows the published generator (https://github.com/syvlo/RSVQA), in units of EPSG:3857. Where the templates leave
a choice it is drawn as there, but sizes and shapes for three of ten objects and relations for three of twenty, so that
few pictures test them all, and classes that are not in the picture for one of four. There is no question of rural or
urban land: the classes have no buildings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from grafalign.questions.rsvqa import QuestionAnswer

ATTRIBUTE, RELATION, ABSENT = 0.3, 0.15, 0.25
TYPES = {'presence': 0.5, 'count': 0.5, 'comp': 0.1, 'area': 0.2}
"""How often each is drawn, as in the published generator."""
RELATIONS = ('at the top of', 'on the right of', 'at the bottom of', 'on the left of', 'next to')
NEAR = 1000.0
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Blob:
    """Connected pixels of one class."""

    rows: Labels
    columns: Labels
    pixel: float
    """Side of a pixel."""

    @property
    def area(self) -> float:
        """Of all pixels."""
        return len(self.rows) * self.pixel**2

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Its pixels, with one more on each side."""
        mask = np.zeros((np.ptp(self.rows) + 3, np.ptp(self.columns) + 3), bool)
        mask[self.rows - self.rows.min() + 1, self.columns - self.columns.min() + 1] = True
        return mask

    @property
    def perimeter(self) -> float:
        """Pixel edges with the blob on one side only."""
        edges = np.count_nonzero(self.mask[1:] != self.mask[:-1]) + np.count_nonzero(
            self.mask[:, 1:] != self.mask[:, :-1]
        )
        return edges * self.pixel

    @property
    def outer_corners(self) -> int:
        """Corners of the outline around it; where two pixels meet across a point there are two."""
        full = ndimage.binary_fill_holes(self.mask)
        four = full[:-1, :-1].astype(int) + full[:-1, 1:] + full[1:, :-1] + full[1:, 1:]
        across = (four == 2) & (full[:-1, :-1] == full[1:, 1:])
        return int(np.count_nonzero(four % 2) + 2 * np.count_nonzero(across))

    def gap(self, other: Blob) -> float:
        """Smallest distance between a pixel of one and a pixel of the other."""
        down = np.maximum(abs(self.rows[:, None] - other.rows) - 1, 0)
        along = np.maximum(abs(self.columns[:, None] - other.columns) - 1, 0)
        return float(np.sqrt((down**2 + along**2).min())) * self.pixel


@dataclass(frozen=True)
class Group:
    """Some objects as a question names them: in the singular, in the plural, and what they are."""

    singular: str
    plural: str
    blobs: list[Blob]


class Picture:
    """A picture that questions are asked about.

    Args:
        labels: numbers of classes, [H, W]; others than those of `names` are of none.
        names: classes.
        pixel: side of a pixel, in units of EPSG:3857.
    """

    def __init__(self, labels: Labels, names: Sequence[str], pixel: float) -> None:
        self.names = names
        self._blobs: list[list[Blob]] = []
        for number in range(len(names)):
            numbered, count = ndimage.label(labels == number)
            places = [np.nonzero(numbered == i) for i in range(1, count + 1)]
            self._blobs.append([Blob(rows, columns, pixel) for rows, columns in places])

    def questions(self, image: str, first: int, count: int, rng: np.random.Generator) -> Iterator[QuestionAnswer]:
        """Draw questions with their answers, none twice.

        Args:
            image: name of the picture.
            first: id of the first one.
            count: how many.
            rng: of the draw.
        """
        said: set[str] = set()
        shares = np.array(list(TYPES.values())) / sum(TYPES.values())
        while len(said) < count:
            kind = str(rng.choice(list(TYPES), p=shares))
            question, answer = self._ask(kind, rng)
            question += ' in the image?' if rng.random() < 0.1 else '?'
            if question not in said:
                said.add(question)
                yield QuestionAnswer(first + len(said) - 1, image, kind, question, answer)

    def _ask(self, kind: str, rng: np.random.Generator) -> tuple[str, str]:
        one = self._group(rng)
        if kind == 'presence':
            form = ('Is there a {}', 'Is a {} present')[rng.integers(2)]
            return form.format(one.singular), _yes(len(one.blobs) > 0)
        if kind == 'count':
            form = ('How many {} are there', 'What is the number of {}', 'What is the amount of {}')[rng.integers(3)]
            return form.format(one.plural), str(len(one.blobs))
        if kind == 'area':
            # the pixels are added up before they are made an area, so that rounding down cannot lose a unit
            pixels = sum(len(blob.rows) for blob in one.blobs)
            pixel = one.blobs[0].pixel if one.blobs else 0.0
            return f'What is the area covered by {one.plural}', f'{int(pixels * pixel**2)}m2'
        other = self._group(rng)
        while other.plural == one.plural:
            other = self._group(rng)
        counts = len(one.blobs), len(other.blobs)
        number = rng.integers(3)
        form = (
            'Are there less {} than {}',
            'Are there more {} than {}',
            'Is the number of {} equal to the number of {}',
        )
        right = (counts[0] < counts[1], counts[0] > counts[1], counts[0] == counts[1])
        return form[number].format(one.plural, other.plural), _yes(right[number])

    def _group(self, rng: np.random.Generator) -> Group:
        one = self._kind(rng)
        if rng.random() >= RELATION:
            return one
        other = self._kind(rng)
        relation = RELATIONS[rng.integers(len(RELATIONS))]
        article = 'the' if len(other.blobs) == 1 else 'a'
        tail = f' {relation} {article} {other.singular}'
        kept = [blob for blob in one.blobs if any(b is not blob and related(blob, relation, b) for b in other.blobs)]
        return Group(one.singular + tail, one.plural + tail, kept)

    def _kind(self, rng: np.random.Generator) -> Group:
        present = [bool(blobs) for blobs in self._blobs]
        wanted = rng.random() >= ABSENT
        choices = [i for i, there in enumerate(present) if there == wanted] or list(range(len(present)))
        number = int(rng.choice(choices))
        name, blobs = self.names[number], self._blobs[number]
        if rng.random() < ATTRIBUTE:
            attribute = str(rng.choice(['small', 'medium', 'large', 'square', 'rectangular', 'circular']))
            blobs = [blob for blob in blobs if has(blob, attribute)]
            name = f'{attribute} {name}'
        return Group(name, name if name.endswith('s') else f'{name}s', blobs)


def has(blob: Blob, attribute: str) -> bool:
    """Whether the published generator finds an object to be so."""
    area, length = blob.area, blob.perimeter
    if attribute in ('small', 'medium', 'large'):
        return {'small': area < 100, 'medium': 100 <= area < 500, 'large': area >= 500}[attribute]
    if 0.9 * area < length**2 / (4 * np.pi) < 1.1 * area:
        return True
    if attribute == 'square':
        return 0.9 * length < area / length < 1.1 * length
    return attribute == 'rectangular' and blob.outer_corners + 1 < 8


def related(blob: Blob, relation: str, other: Blob) -> bool:
    """Whether an object lies so to another: as a whole beyond the middle of its bounds, or nearer than 1000."""
    row, column = (other.rows.min() + other.rows.max() + 1) / 2, (other.columns.min() + other.columns.max() + 1) / 2
    return {
        'at the top of': lambda: blob.rows.max() + 1 < row,
        'at the bottom of': lambda: blob.rows.min() > row,
        'on the right of': lambda: blob.columns.min() > column,
        'on the left of': lambda: blob.columns.max() + 1 < column,
        'next to': lambda: blob.gap(other) < NEAR,
    }[relation]()


def _yes(holds: bool) -> str:
    return 'yes' if holds else 'no'
