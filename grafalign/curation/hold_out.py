"""Hold kinds of things out of a caption set, to ask afterwards what a model makes of what it never saw from above.

One rule for an image: it leaves, with all its captions, if a landmark on it is of such a kind, visible or not, or if
any of its captions names the kind or one of its synonyms. Leaving out the captions alone would keep the images under
other words (a golf course as "park"). Where the truth is known, what stays behind all the same is counted.

A CLIP knows the words from its own training: "unseen" means unseen from above.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pydantic import Field, field_validator

from grafalign.captions import CaptionSet
from grafalign.captions.landmarks.find import open_landmarks
from grafalign.captions.writing.template import plural
from grafalign.config import Settings
from grafalign.curation.select import Reasons, select
from grafalign.errors import InputError
from grafalign.files import parquet_batches

_BLOCK = 1 << 16


class HeldOutKind(Settings):
    """A kind of thing and what else it is called."""

    kind: str
    synonyms: tuple[str, ...] = ()
    """Other words for it; plurals are found by themselves."""

    @field_validator('kind', 'synonyms')
    @classmethod
    def _says_something(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if any(not re.search(r'\w', word) for word in ((value,) if isinstance(value, str) else value)):
            raise ValueError('a kind needs a word')
        return value

    @property
    def words(self) -> tuple[str, ...]:
        """All names of it."""
        return (self.kind, *self.synonyms)


class HoldOutSettings(Settings):
    """The file of `grafalign captions hold-out`."""

    kinds: tuple[HeldOutKind, ...] = Field(min_length=1)


@dataclass(frozen=True)
class HeldOut:
    """What a hold-out left out, and what it could not."""

    images: int
    """Of the whole set."""
    kept: int
    with_landmark: dict[str, int]
    """Images with a landmark of each kind."""
    named: dict[str, int]
    """Images with a caption that names each kind."""
    true: dict[str, int] | None
    """Images of the whole set that show each kind, where the truth is known."""
    true_kept: dict[str, int] | None
    """Of these, those that are still there: no caption and no landmark gave them away."""


def hold_out(
    captions: CaptionSet,
    out: Path,
    settings: HoldOutSettings,
    landmarks: Path | None = None,
    truth: Path | None = None,
) -> HeldOut:
    """Write a set without some kinds.

    Args:
        captions: the set.
        out: folder of the new set.
        settings: the kinds.
        landmarks: folder of `captions landmarks` of this set.
        truth: table (.csv, .parquet) of what images show, columns `image_id` and `kind`, to count by.

    Raises:
        GrafalignError: a kind is nowhere in the set, nothing is left, landmarks are of another set, or the truth cannot
            be read.
    """
    kinds = settings.kinds
    named = {k.kind: _naming(captions, k) for k in kinds}
    marked = {k.kind: np.zeros(len(captions), dtype=bool) for k in kinds}
    if landmarks is not None:
        marked = _marked(captions, landmarks, kinds)
    lost = next((k.kind for k in kinds if not (named[k.kind].any() or marked[k.kind].any())), None)
    if lost is not None:
        raise InputError(
            f'No caption of {captions.path} names {lost!r} and no landmark is one, so there is nothing to hold out; '
            'look at the spelling, or leave it out.'
        )
    true = None if truth is None else _true(captions, truth, kinds)
    reasons: Reasons = np.full(len(captions), None, dtype=object)
    for kind in (k.kind for k in kinds):
        reasons[named[kind]] = f'a caption names {kind}'
        reasons[marked[kind]] = f'a landmark is of kind {kind}'
    rule = {'hold_out': settings.model_dump(mode='json'), 'landmarks': None if landmarks is None else str(landmarks)}
    select(captions, out, reasons, rule)
    kept = np.asarray(pd.isna(reasons), dtype=bool)
    return HeldOut(
        len(captions),
        int(kept.sum()),
        {kind: int(rows.sum()) for kind, rows in marked.items()},
        {kind: int(rows.sum()) for kind, rows in named.items()},
        None if true is None else {kind: int(rows.sum()) for kind, rows in true.items()},
        None if true is None else {kind: int((rows & kept).sum()) for kind, rows in true.items()},
    )


def naming(words: Iterable[str]) -> re.Pattern[str]:
    """What finds any of some words in a text, singular or plural, in any case, with blanks or hyphens.

    Example:
        >>> bool(naming(['golf course']).search('Two Golf-courses beside a lake'))
        True
        >>> bool(naming(['solar panels']).search('a solar panel')), bool(naming(['port']).search('an airport'))
        (True, False)
    """
    forms = {form for word in words for form in (word.strip(), plural(word.strip()), _singular(word.strip()))}
    parts = sorted((r'[\s-]+'.join(map(re.escape, re.split(r'[\s-]+', form))) for form in forms), key=len, reverse=True)
    return re.compile(rf'(?<!\w)(?:{"|".join(parts)})(?!\w)', re.IGNORECASE)


def _singular(word: str) -> str:
    """The word without its plural's ending; the word itself where it has none."""
    head, of, rest = word.partition(' of ')
    if head.endswith('ies'):
        head = f'{head[:-3]}y'
    elif head.endswith(('ches', 'shes', 'xes', 'sses')):
        head = head[:-2]
    elif head.endswith('s') and not head.endswith('ss'):
        head = head[:-1]
    return f'{head}{of}{rest}'


def _naming(captions: CaptionSet, kind: HeldOutKind) -> npt.NDArray[np.bool_]:
    """Images with a caption that names a kind, [N]."""
    found, pattern = np.zeros(len(captions), dtype=bool), naming(kind.words)
    for batch in parquet_batches(captions.path / 'captions.parquet', _BLOCK, ['image', 'text']):
        texts = batch.column('text').to_pylist()
        names = np.fromiter((pattern.search(text) is not None for text in texts), dtype=bool, count=len(texts))
        found[batch.column('image').to_numpy()[names]] = True
    return found


def _marked(captions: CaptionSet, landmarks: Path, kinds: Sequence[HeldOutKind]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each kind the images with a landmark of it, [N]."""
    found = {k.kind: np.zeros(len(captions), dtype=bool) for k in kinds}
    patterns = {k.kind: naming(k.words) for k in kinds}
    with open_landmarks(landmarks, captions) as file:
        for batch in file.iter_batches(_BLOCK, columns=['image', 'kind']):
            images, names = batch.column('image').to_numpy(), batch.column('kind').to_pylist()
            for kind, pattern in patterns.items():
                of_kind = {name for name in set(names) if pattern.fullmatch(name)}
                found[kind][images[[name in of_kind for name in names]]] = True
    return found


def _true(captions: CaptionSet, truth: Path, kinds: Sequence[HeldOutKind]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each kind the images that show it, [N].

    Raises:
        GrafalignError: the table cannot be read, or names no image of the set.
    """
    try:
        table = pd.read_parquet(truth) if truth.suffix == '.parquet' else pd.read_csv(truth)
        ids, names = table['image_id'].astype(str), table['kind'].astype(str)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = ' '.join(str(error).split())[:120]
        raise InputError(f'{truth} cannot be read ({reason}); give a table with columns image_id and kind.') from None
    rows = pd.Series(np.arange(len(captions)), index=captions.images['image_id'].to_pandas().astype(str))
    place = ids.map(rows)
    if place.isna().all():
        raise InputError(f'{truth} names no image of {captions.path}; its image_id must be those of the set.')
    found = {}
    for kind in kinds:
        pattern = naming(kind.words)
        mine = place[names.map(lambda name, p=pattern: p.fullmatch(name) is not None)].dropna()
        found[kind.kind] = np.isin(np.arange(len(captions)), mine.astype(np.int64))
    return found
