"""A labelled set of satellite images, whatever files it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.errors import InputError

RGB = ('red', 'green', 'blue')


@dataclass(frozen=True)
class ImageSet:
    """A labelled or captioned set of N images with K classes, whose pictures are read one by one."""

    name: str
    split: str
    """Which part of the set: `all`, `train`, `val` or `test`."""
    items: Sequence[str]
    """What each image is called, for messages and for telling sets apart."""
    read: Callable[[int], npt.NDArray[Any]]
    """Physical values [C, H, W] of one image."""
    bands: tuple[str, ...] = RGB
    value_range: tuple[float, float] = (0.0, 255.0)
    """Physical values that become black and white."""
    classes: tuple[str, ...] = ()
    """In words, as prompts say them."""
    labels: npt.NDArray[np.int64] | None = None
    """Class of each image, [N]."""
    many: npt.NDArray[np.bool_] | None = None
    """Classes of each image where it may have several, [N, K]."""
    captions: Sequence[Sequence[str]] | None = None
    """Captions of each image."""
    mask: Callable[[int], npt.NDArray[np.int64]] | None = None
    """Class of every pixel of one image, [H, W]; `VOID` where it does not count."""
    lonlat: Callable[[], npt.NDArray[np.float64] | None] = field(default=lambda: None)
    """Places of the images, [N, 2], read when asked for; None where they are not known."""
    state: Callable[[], str] = field(default=lambda: '')
    """Changes when a file that is read does (size and time), for what is kept on disk; read when asked for."""
    partial: bool = False
    """Whether images of the published set are missing."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know: images left out, other rules than the published ones."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """Tells images, order and truth of one set from another's, wherever it lies: what may be compared in pairs.

        A file's name stands for its pixels; `state` tells whether the files are still the same.
        """
        state = hashlib.blake2b(digest_size=16)
        for part in (self.name, self.split, self.bands, self.value_range, self.classes):
            state.update(repr(part).encode())
        state.update(json.dumps([list(self.items), [list(texts) for texts in self.captions or ()]]).encode())
        for truth in (self.labels, self.many):
            state.update(b'-' if truth is None else np.ascontiguousarray(truth).tobytes())
        return state.hexdigest()

    @property
    def pixels_digest(self) -> str:
        """Tells whether embeddings of these images may be used again: names, files, bands and range; not the truth."""
        content = json.dumps([list(self.items), self.state(), self.bands, self.value_range])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def __post_init__(self) -> None:
        """Refuse what no figure can be computed of.

        Raises:
            GrafalignError: there is no image, or two classes have one name.
        """
        if not len(self.items):
            raise InputError(f'{self.name} has no image of the split {self.split}; get the whole set.')
        twice = [c for c in self.classes if self.classes.count(c) > 1]
        if twice:
            raise InputError(f'{self.name} has two classes called {twice[0]!r}; give them different words.')

    def subset(self, rows: npt.NDArray[np.int64], split: str) -> ImageSet:
        """Some of the images as a set of their own."""
        if not len(rows):
            raise InputError(f'{self.name} has no image of the split {split}; get the whole set, or take another.')
        kept = rows.tolist()

        def lonlat() -> npt.NDArray[np.float64] | None:
            found = self.lonlat()
            return None if found is None else found[rows]

        return replace(
            self,
            split=split,
            items=[self.items[i] for i in kept],
            read=lambda row: self.read(kept[row]),
            labels=None if self.labels is None else self.labels[rows],
            many=None if self.many is None else self.many[rows],
            captions=None if self.captions is None else [self.captions[i] for i in kept],
            mask=None if self.mask is None else lambda row: self.mask(kept[row]),  # type: ignore[misc]
            lonlat=lonlat,
        )
