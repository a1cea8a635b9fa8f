"""Hashes of what an image looks like under the eight symmetries, and the pairs of images that are the same picture.

Overhead imagery has no up: augmented sets hold turned and mirrored copies. A difference hash changes with the turn, so
every image has eight; an image and a turned copy agree in one of them. Textures of fields and water are alike all over
the Earth: in AID most pairs within a few bits are strangers, so that a pair counts only once its pixels were compared
(`same_picture`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from grafalign.photos.duplicates import close_pairs

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
MOST_BITS = 6
"""Bits in which two images may differ to be compared by their pixels. Of AID's images turned, made smaller by a third
and saved again at JPEG quality 40 to 90, half are within 3 bits and nine of ten within 5."""
_GRID = 72
_THUMB_PX = 24
LEAST_CORRELATION = 0.85
"""Correlation of two thumbnails' slopes from which on they are one picture: 99 of 100 of those copies have 0.94, two
beaches 0.5. The thumbnails themselves cannot tell: any two beaches are bright here and dark there (0.98)."""


def symmetries(pixels: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.generic]]:
    """The eight turned and mirrored forms of a square [S, S], itself first."""
    for flip in (False, True):
        side = pixels[:, ::-1] if flip else pixels
        for turn in range(4):
            yield np.rot90(side, turn)


def symmetric_hashes(image: Image.Image) -> Hashes:
    """The difference hashes of an image in its eight forms, [8]; the first is that of the image as it is.

    As `photos.exif.difference_hash`, of the image stretched to a square. 0 says that there is no structure at all.
    """
    grey = np.asarray(image.convert('L').resize((_GRID, _GRID), Image.Resampling.BOX), dtype=np.float32)
    # all eight come from two tables of means: cells of an upright form, and those of one that lies on its side
    upright = grey.reshape(8, _GRID // 8, 9, _GRID // 9).mean((1, 3))
    lying = grey.reshape(9, _GRID // 9, 8, _GRID // 8).mean((1, 3))
    cells = np.empty((8, 8, 9), dtype=np.float32)
    for number in range(8):
        side = lying if number % 2 else upright
        cells[number] = np.rot90(side[:, ::-1] if number >= 4 else side, number % 4)
    cells = np.round(cells, 2)
    bits = np.packbits((cells[:, :, 1:] > cells[:, :, :-1]).reshape(8, 64), axis=1)
    return bits.view('>u8').ravel().astype(np.uint64)


def alike(first: Hashes, second: Hashes | None = None, most_bits: int = MOST_BITS) -> npt.NDArray[np.int64]:
    """Pairs of images of which a form of one is near the other, by their hashes alone.

    Args:
        first: hashes [N, 8].
        second: hashes [M, 8] of other images; pairs among the first ones without.
        most_bits: largest number of different bits.

    Returns:
        Rows of the first and of the second (or the first again, the smaller row first), each pair once, [P, 2].
    """
    other = first if second is None else second
    plain, forms = first[:, 0], other.ravel()
    values = np.unique(np.concatenate([plain, forms]))
    mine = pd.DataFrame({'code': np.searchsorted(values, plain), 'one': np.arange(len(plain))})
    theirs = pd.DataFrame({'code': np.searchsorted(values, forms), 'two': np.arange(len(forms)) // 8}).drop_duplicates()
    flat = np.flatnonzero(values == 0)  # images without any structure are like all others without
    mine, theirs = (table[~table['code'].isin(flat)] for table in (mine, theirs))
    found = [mine.merge(theirs, on='code')[['one', 'two']]]
    for near, far in close_pairs(values, most_bits) if most_bits else ():
        near, far = np.concatenate([near, far]), np.concatenate([far, near])
        through = mine.merge(pd.DataFrame({'code': near, 'to': far}), on='code')
        found.append(through.merge(theirs, left_on='to', right_on='code')[['one', 'two']])
    pairs = pd.concat(found).drop_duplicates().to_numpy()
    if second is None:
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0).astype(np.int64)


def same_picture(first: Image.Image, second: Image.Image) -> float:
    """Largest correlation of the slopes of two images' grey thumbnails over the eight forms, -1 to 1."""
    one, two = (
        np.asarray(i.convert('L').resize((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX), dtype=np.float64)
        for i in (first, second)
    )
    slopes, best = _slopes(one), -1.0
    for form in symmetries(two):
        other = _slopes(form)
        norm = np.sqrt((slopes**2).sum() * (other**2).sum())
        best = max(best, float((slopes * other).sum() / norm) if norm > 0 else -1.0)
    return best


def _slopes(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Differences of neighbours down and across, of mean 0."""
    values = np.asarray(pixels, dtype=np.float64)
    found = np.concatenate([np.diff(values, axis=0).ravel(), np.diff(values, axis=1).ravel()])
    return np.asarray(found - found.mean())
