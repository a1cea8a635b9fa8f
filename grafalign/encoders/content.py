"""Which photos show no place? CLIP is asked, with its own words, on the embeddings that the bank already holds.

Every class (`keep` and `reject` in `content_prompts.yaml`) is the mean of the unit text embeddings of its prompts,
renormalised. For a photo and a class of `reject`, the score is the softmax between that class and the likeliest class
of `keep`, at CLIP's own temperature: 0.5 says both are as likely, 0.9 that the reject class is nine times as likely. A
photo is left out when its best reject class has a score of at least the threshold. The thresholds are our choice, not
measured on labelled photos; 0.6 leaves out what is 1.5 times as likely to show no place.

Photos that are fetched from elsewhere had no size, bytes or looks yet when the recipe's `photos.filters` were applied:
its `min_px` and `duplicates` are applied to them here.

    BANK/filtered.parquet   photo_id, reason, score, detail of the photos that are left out; no photo is read again
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator

from grafalign.config import Settings, load_settings
from grafalign.encoders.bank import bank_folder, open_bank, write_filtered
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.ensemble import ensemble
from grafalign.errors import InputError, naming_full_disk
from grafalign.locks import exclusive
from grafalign.photos.duplicates import duplicate_of
from grafalign.photos.fetch import is_remote
from grafalign.store import PairStore

SHIPPED_PROMPTS = Path(__file__).with_name('content_prompts.yaml')
_BLOCK = 65_536
"""Photos that are compared with the classes at a time."""
Floats = npt.NDArray[np.float32]


class ContentPrompts(Settings):
    """The file of prompts: class names to prompts."""

    keep: dict[str, list[str]] = Field(min_length=1)
    """Classes of photos that show a place."""
    reject: dict[str, list[str]] = Field(min_length=1)
    """Classes of photos that do not; the name becomes the reason."""

    @field_validator('keep', 'reject')
    @classmethod
    def _prompts(cls, classes: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, prompts in classes.items():
            if not name.strip() or not prompts or not all(p.strip() for p in prompts):
                raise ValueError(f'{name!r} needs a name and at least one prompt, none of them empty')
        return classes


class ContentFilters(Settings):
    """Settings of `grafalign filter`: which photos of a bank are left out by what they show."""

    prompts: Path | None = None
    """YAML with `keep:` and `reject:`, each class names to lists of prompts; the prompts that ship by default."""
    off: tuple[str, ...] = ()
    """Classes of `reject` that are not used."""
    threshold: float = Field(default=0.6, gt=0, lt=1)
    """Score from which a class leaves a photo out, see the head of this file; 0.5 is plain argmax."""
    thresholds: dict[str, float] = {}
    """The same for single classes."""
    min_px: int | None = Field(default=None, ge=1)
    """Smallest length of the shorter side of remote photos; by default as in the recipe's `photos.filters`."""
    duplicates: Literal['none', 'bytes', 'perceptual'] | None = None
    """Leave out remote photos with the bytes of another photo of the store, or those that look like another too; by
    default as in the recipe."""
    max_distance: int | None = Field(default=None, ge=0, le=8)
    """Bits of the 64 in which the difference hashes of photos that look the same may differ; by default as there."""

    @field_validator('thresholds')
    @classmethod
    def _in_range(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for name, value in thresholds.items():
            if not 0 < value < 1:
                raise ValueError(f'the threshold of {name} must lie between 0 and 1')
        return thresholds


def filter_bank(
    store: PairStore, clip: FrozenClip, filters: ContentFilters | None = None, bank: Path | None = None
) -> dict[str, int]:
    """Leave photos out of a bank that show no place (indoors, food, screenshots), by CLIP's own words.

    Args:
        store: the pair store.
        clip: the CLIP that the bank was made with.
        filters: what to leave out.
        bank: the bank's folder; `STORE/bank` by default.

    Returns:
        Photos left out by reason, most first; those that could not be read are not among them.

    Raises:
        GrafalignError: there is no bank or it belongs to another CLIP, the prompts cannot be read, a class is unknown,
            no photo would be left, or the disk is full.
    """
    filters = filters or ContentFilters()
    folder = bank_folder(store, bank)
    prompts = _prompts(filters)
    with exclusive(folder), naming_full_disk(folder):
        opened = open_bank(store, folder, clip, filtered=False)
        left = opened.valid.copy()
        reason = np.full(len(left), None, dtype=object)
        detail = np.full(len(left), None, dtype=object)
        score = np.full(len(left), np.nan)
        rows = np.flatnonzero(left)
        if prompts.reject:
            names = list(prompts.reject)
            limits = np.array([filters.thresholds.get(name, filters.threshold) for name in names], dtype=np.float32)
            keep, reject = vectors_of(clip, prompts.keep), vectors_of(clip, prompts.reject)
            for start in range(0, len(rows), _BLOCK):
                here = rows[start : start + _BLOCK]
                scores = reject_scores(opened.embeddings[here].astype(np.float32), keep, reject, clip.scale)
                best = np.where(scores >= limits, scores, -1).argmax(1)
                out = scores[np.arange(len(here)), best] >= limits[best]
                reason[here[out]] = np.array(names, dtype=object)[best[out]]
                score[here[out]] = scores[np.arange(len(here)), best][out]
            left &= pd.isna(reason)
        for rows_out, why, details in _late(store, opened.photos, left, filters):
            reason[rows_out], detail[rows_out] = why, details
            left[rows_out] = False
        if not left.any():
            raise InputError(
                f'{folder}: all {len(rows)} photos would be left out ({pd.Series(reason).value_counts().index[0]} most '
                'often); raise the threshold or look at the prompts.'
            )
        out = ~pd.isna(reason)
        table = pd.DataFrame(
            {
                'photo_id': opened.photos['photo_id'][out].astype('string'),
                'reason': pd.Series(reason[out], dtype='string').to_numpy(),
                'score': score[out].astype(np.float32),
                'detail': pd.Series(detail[out], dtype='string').to_numpy(),
            }
        ).astype({'reason': 'string', 'detail': 'string'})
        write_filtered(folder, table)
    counts = table['reason'].value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def vectors_of(clip: FrozenClip, classes: dict[str, list[str]]) -> Floats:
    """Unit vectors [K, D] of K classes, each with prompts of its own."""
    return np.stack([ensemble(clip.encode_text(prompts).cpu().numpy()[:, None])[0] for prompts in classes.values()])


def reject_scores(photos: Floats, keep: Floats, reject: Floats, scale: float) -> Floats:
    """Score of every reject class against the likeliest keep class, [N, R] in (0, 1).

    Args:
        photos: unit embeddings [N, D].
        keep: unit class vectors [K, D].
        reject: unit class vectors [R, D].
        scale: CLIP's inverse temperature.
    """
    ahead = scale * (photos @ reject.T - (photos @ keep.T).max(1, keepdims=True))
    return np.asarray(1 / (1 + np.exp(-ahead.clip(-80, 80))), dtype=np.float32)


def _prompts(filters: ContentFilters) -> ContentPrompts:
    """The prompts in use, without the classes that are switched off."""
    path = filters.prompts or SHIPPED_PROMPTS
    prompts = load_settings(path, ContentPrompts)
    for name in (*filters.off, *filters.thresholds):
        if name not in prompts.reject:
            raise InputError(f'{path} has no class {name!r} to reject; its classes are {", ".join(prompts.reject)}.')
    return prompts.model_copy(update={'reject': {k: v for k, v in prompts.reject.items() if k not in filters.off}})


def _late(
    store: PairStore, photos: pd.DataFrame, left: npt.NDArray[np.bool_], filters: ContentFilters
) -> Iterator[tuple[npt.NDArray[np.int64], str, list[str]]]:
    """The recipe's filters that had to wait for remote photos: rows, reason and detail."""
    recipe = (store.marker.recipe.get('photos') or {}).get('filters') or {}
    given = {k: v for k, v in filters.model_dump().items() if v is not None}
    wanted = {'min_px': None, 'duplicates': 'none', 'max_distance': 4} | recipe | given
    remote = np.array([is_remote(uri) for uri in store.photos['uri']], dtype=bool) & left
    if wanted['min_px'] is not None and remote.any():
        width, height = (
            photos['width'].to_numpy(float, na_value=np.inf),
            photos['height'].to_numpy(float, na_value=np.inf),
        )
        small = np.flatnonzero(remote & (np.minimum(width, height) < wanted['min_px']))
        yield small, 'too few pixels', [f'{width[i]:.0f} x {height[i]:.0f}' for i in small]
        remote[small] = False
    if wanted['duplicates'] != 'none' and remote.any():
        rows = np.flatnonzero(left)  # without the small ones: they are marked as soon as they are yielded
        looks = wanted['duplicates'] == 'perceptual'
        row, kept = _duplicates(photos, rows, remote[rows], int(wanted['max_distance']) if looks else None)
        yield row, 'duplicate photo', [f'same picture as {photos["photo_id"].iloc[i]}' for i in kept]


def _duplicates(
    photos: pd.DataFrame, rows: npt.NDArray[np.int64], remote: npt.NDArray[np.bool_], max_distance: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of remote photos that repeat another photo, and the rows they repeat; by bytes alone without a distance.

    Photos of this machine are preferred, then larger ones, then those whose id comes first. Pictures without structure
    (hash 0: fog, a plain wall) all look alike and are compared by their bytes only.
    """
    here = photos.iloc[rows]
    pixels = (here['width'].astype('int64') * here['height'].astype('int64')).to_numpy()
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.lexsort((rows, -pixels, remote))] = np.arange(len(rows))
    dhashes = None if max_distance is None else here['dhash'].mask(here['dhash'] == 0)
    of = duplicate_of(here['digest'], dhashes, rank, max_distance or 0)
    again = np.flatnonzero((of >= 0) & remote)
    return rows[again], rows[of[again]]
