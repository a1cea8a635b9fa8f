"""Labelled kinds of images: the file that a filter is fitted from.

    aerial:                      # taken from the air or from space?
      positive: {aid: data/AID, eurosat: data/EuroSAT_RGB}
      negative: {photo: web/photo, chart: web/chart, map: web/map}
    overhead:                    # looking straight down? may be left out
      positive: {aid: data/AID}
      negative: {oblique: web/oblique, photo: web/photo}

A folder is read with all below it. A picture may be in several kinds; it is read once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from grafalign.captions.hashes import symmetric_hashes
from grafalign.config import Settings
from grafalign.curation.heads import Labelled
from grafalign.datasets.pictures import is_picture
from grafalign.errors import InputError
from grafalign.foreign.files import open_plain
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.photos.exif import MAX_FILE_BYTES, PhotoError, open_photo
from grafalign.photos.ranks import keyed_hashes


class Kinds(Settings):
    """Folders of one question, by kind."""

    positive: dict[str, Path] = Field(min_length=1)
    negative: dict[str, Path] = Field(min_length=1)

    @model_validator(mode='after')
    def _are_different(self) -> Kinds:
        both = set(self.positive) & set(self.negative)
        if both:
            raise ValueError(f'{min(both)} is both positive and negative; a kind is one of them')
        return self


class FilterLabels(Settings):
    """The file of labelled kinds."""

    aerial: Kinds
    """Is it an image from the air or from space?"""
    overhead: Kinds | None = None
    """Does it look straight down?"""
    most: int = Field(default=3000, ge=20)
    """Images of a kind that are used, drawn by a keyed hash of their path."""

    @property
    def questions(self) -> dict[str, Kinds]:
        """The questions that have labels, by name."""
        return {'aerial': self.aerial} | ({} if self.overhead is None else {'overhead': self.overhead})


class LabelledImages:
    """All labelled images of a file, embedded once.

    Args:
        labels: the kinds.
        model: embeds them.
        workers: threads that decode.

    Raises:
        GrafalignError: a folder is missing or holds no picture that can be read.
    """

    def __init__(self, labels: FilterLabels, model: Model, workers: int | None = None) -> None:
        folders = {
            (name, path)
            for q in labels.questions.values()
            for side in (q.positive, q.negative)
            for name, path in side.items()
        }
        self._files = {(name, path): _pictures(name, path, labels.most) for name, path in sorted(folders)}
        self.files = sorted({file for files in self._files.values() for file in files})
        self.unreadable: dict[Path, str] = {}
        found: dict[Path, np.ndarray] = {}
        self.digests: dict[Path, str] = {}
        self.hashes: dict[Path, np.ndarray] = {}
        smallest = 2 * model.preprocessing.size_px

        def read(row: int) -> np.ndarray:
            path = self.files[row]
            try:
                with open_plain(path, MAX_FILE_BYTES) as file:
                    content = file.read()
                image = open_photo(content, smallest)
            except (PhotoError, OSError, ValueError) as error:
                raise InputError(str(error)) from None
            self.digests[path] = hashlib.blake2b(content, digest_size=16).hexdigest()
            self.hashes[path] = symmetric_hashes(image)
            return np.asarray(image).transpose(2, 0, 1)

        for rows, vectors in embed_pictures(
            model,
            read,
            range(len(self.files)),
            ('red', 'green', 'blue'),
            (0.0, 255.0),
            label='embedding labelled images',
            workers=workers,
            reject=lambda row, reason: self.unreadable.__setitem__(self.files[row], reason),
        ):
            found |= {self.files[row]: vector for row, vector in zip(rows, vectors, strict=True)}
        self._vectors = found

    def of(self, kinds: Kinds) -> tuple[Labelled, list[Path]]:
        """The readable images of a question, and their files."""
        rows: list[tuple[Path, str, bool]] = []
        for positive, side in ((True, kinds.positive), (False, kinds.negative)):
            for name, folder in side.items():
                rows += [(f, name, positive) for f in self._files[name, folder] if f in self._vectors]
        files = [file for file, _, _ in rows]
        data = Labelled(
            np.stack([self._vectors[f] for f in files]),
            np.array([kind for _, kind, _ in rows], dtype=object),
            np.array([positive for _, _, positive in rows]),
            [self.digests[f] for f in files],
        )
        return data, files


def _pictures(kind: str, folder: Path, most: int) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f'There is no folder {folder} for the kind {kind}; give a folder of pictures.')
    files = sorted(p for p in folder.rglob('*') if is_picture(p.name) and p.is_file())
    if not files:
        raise InputError(f'{folder} holds no picture for the kind {kind}; give a folder of pictures.')
    return [files[i] for i in sorted(_first(files, most))]


def _first(files: list[Path], most: int) -> Iterable[int]:
    if len(files) <= most:
        return range(len(files))
    return np.argsort(keyed_hashes([f.as_posix() for f in files], 0))[:most].tolist()
