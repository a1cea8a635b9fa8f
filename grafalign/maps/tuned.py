"""`words.npz`: words that points have moved (`tune.py`), as a file that is given wherever words are.

vectors    float32 [K, D]; log odds of the classes = embedding @ vectors.T + offsets
offsets    float32 [K]
about      JSON (uint8): classes with their colours, the model and field they are of, how they were made
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel

from grafalign import __version__
from grafalign.artefacts import Marker
from grafalign.errors import DamagedError, InputError, StaleError
from grafalign.fields import Field, FieldPlan
from grafalign.fields.marker import Of
from grafalign.files import write_atomically
from grafalign.foreign.files import open_plain
from grafalign.maps.classes import ClassesFile, MapClass, MapClasses, load_classes, question_of
from grafalign.maps.points import Points, embed_points
from grafalign.maps.tune import balanced_mean, tune

SUFFIX = '.npz'
_MOST_BYTES = 256 << 20
_MOST_SCORES = 32_000_000
"""Scores of land that a fit looks at, at 8 bytes each."""


class TunedClass(BaseModel):
    """A class of tuned words."""

    name: str
    colour: tuple[int, int, int]
    background: bool
    points: int


class TunedMarker(Marker):
    """`about` of `words.npz`."""

    REMEDY: ClassVar[str] = 'make it again with `grafalign tune-words`'

    format: int
    classes: tuple[TunedClass, ...]
    model: str
    """How the model was given when the field was made."""
    model_digest: str
    of: Of
    """Whether the field holds patches or windows."""
    field: str
    points: str
    """The file of points."""
    weight: float
    """How many points the land of the words counts as."""
    ridge: float
    """Added to the variances, as a share of their mean."""
    sharpness: float
    """What the log odds were multiplied by."""
    right_by_words: float
    """Mean over classes of the share of points that the words alone get right."""
    right: float
    """The same of the tuned words, each point left out in turn."""
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True)
class TunedWords:
    """Words that points have moved."""

    path: Path
    about: TunedMarker
    vectors: npt.NDArray[np.float32]
    """[K, D]"""
    offsets: npt.NDArray[np.float32]
    """[K]"""

    @property
    def classes(self) -> MapClasses:
        """Classes for a map; their scores are log odds."""
        shown = tuple(MapClass(c.name, c.colour, c.background) for c in self.about.classes)
        return MapClasses(shown, self.vectors, np.arange(len(shown)), 'mean', self.offsets)

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [c.name for c in self.about.classes]

    @property
    def points(self) -> int:
        """Points that moved them."""
        return sum(c.points for c in self.about.classes)

    def check(self, plan: FieldPlan, path: Path) -> None:
        """Refuse a field of another model, or of another kind.

        Raises:
            StaleError: it is one.
        """
        if (self.about.model_digest, self.about.of) != (plan.model_digest, plan.of):
            raise StaleError(
                f'{self.path} was tuned on {self.about.of} of {self.about.model}, and {path} holds {plan.of} of '
                'another model or kind; tune the words on a field like it.'
            )

    def unit_vector(self, name: str) -> npt.NDArray[np.float32]:
        """The direction of a class, [D], for a search.

        Raises:
            InputError: there is no such class.
        """
        names = [c.name for c in self.about.classes]
        if name not in names:
            raise InputError(f'{self.path} has no class {name!r}; it has {", ".join(names)}.')
        vector = self.vectors[names.index(name)]
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def tune_words(field: Field, classes: MapClasses, points: Points, out: Path, seed: int = 0) -> TunedWords:
    """Tune words to a person's points, and write them.

    Args:
        field: what shows the points; the tuned words are for fields of its model.
        classes: the words.
        points: the points.
        out: the file to write.
        seed: of the land that stands for the scene.

    Raises:
        GrafalignError: the field shows too few of the points, or the file cannot be written.
    """
    shown = embed_points(field, points, classes.names)
    question = question_of(classes)
    land = field.sample(min(20_000, max(1000, _MOST_SCORES // len(classes.classes))), seed)
    scores, theirs = (question.scores(torch.from_numpy(e)).numpy().astype(float) for e in (land, shown.embeddings))
    tuned = tune(scores.argmax(1), scores, land.astype(float), shown.embeddings.astype(float), shown.labels)
    count = np.bincount(shown.labels, minlength=len(classes.classes))
    about = TunedMarker(
        format=TunedMarker.NEWEST,
        classes=tuple(
            TunedClass(name=c.name, colour=c.colour, background=c.background, points=int(n))
            for c, n in zip(classes.classes, count, strict=True)
        ),
        model=field.marker.model,
        model_digest=field.plan.model_digest,
        of=field.plan.of,
        field=str(field.path),
        points=str(points.path),
        weight=tuned.weight,
        ridge=tuned.ridge,
        sharpness=tuned.sharpness,
        right_by_words=round(balanced_mean((theirs.argmax(1) == shown.labels).astype(float), shown.labels), 4),
        right=round(tuned.right, 4),
        seed=seed,
        versions={'grafalign': __version__, 'numpy': np.__version__},
    )
    words = TunedWords(out, about, tuned.vectors.astype(np.float32), tuned.offsets.astype(np.float32))
    content = io.BytesIO()
    text = np.frombuffer(about.model_dump_json().encode(), dtype=np.uint8)
    np.savez(content, vectors=words.vectors, offsets=words.offsets, about=text)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content.getvalue())
    return words


def load_words(words: Sequence[str]) -> ClassesFile | TunedWords:
    """Words from a command line: themselves, `classes.yaml`, or `words.npz`.

    Raises:
        GrafalignError: a file cannot be read or is damaged, there are no words, or one is there twice.
    """
    if len(words) == 1 and Path(words[0]).suffix.lower() == SUFFIX:
        return load_tuned(Path(words[0]))
    return load_classes(words)


def load_tuned(path: Path) -> TunedWords:
    """Open `words.npz`.

    Raises:
        GrafalignError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f'There is no {path}; give a file of `grafalign tune-words`, classes.yaml, or words.')
    try:
        with open_plain(path, _MOST_BYTES) as file, zipfile.ZipFile(file) as members:
            if sum(member.file_size for member in members.infolist()) > _MOST_BYTES:
                raise ValueError('it unfolds to too much')
            vectors, offsets, text = (
                np.lib.format.read_array(io.BytesIO(members.read(f'{name}.npy')), allow_pickle=False)
                for name in ('vectors', 'offsets', 'about')
            )
        about = TunedMarker.parse(text.astype(np.uint8).tobytes(), path)
        vectors, offsets = vectors.astype(np.float32), offsets.astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise DamagedError(f'{path} is damaged ({reason}); {TunedMarker.REMEDY}.') from None
    count = len(about.classes)
    if vectors.ndim != 2 or len(vectors) != count or offsets.shape != (count,) or not np.isfinite(vectors).all():
        raise DamagedError(f'{path} is damaged (its arrays do not go together); {TunedMarker.REMEDY}.')
    return TunedWords(path, about, vectors, offsets)
