"""SAT-4 and SAT-6 (Basu et al., "DeepSat", 2015): 28 x 28 px of NAIP with four bands, in one MATLAB file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError

CLASSES = {
    'sat4': ('barren land', 'trees', 'grassland', 'other land cover'),
    'sat6': ('building', 'barren land', 'trees', 'grassland', 'road', 'water'),
}
"""In the order of the one-hot labels; of SAT-6 it is not that of the paper."""
COUNTS = {'sat4': {'train': 400_000, 'test': 100_000}, 'sat6': {'train': 324_000, 'test': 81_000}}
_BANDS = ('red', 'green', 'blue', 'nir')


def load_deepsat(name: str, path: Path, split: str = 'test', *, partial: bool = False) -> ImageSet:
    """SAT-4 or SAT-6.

    Args:
        name: `sat4` or `sat6`.
        path: `sat-4-full.mat` or `sat-6-full.mat`, or the folder that holds it.
        split: `train` or `test`.
        partial: accept another number of images.

    Raises:
        GrafalignError: the file is missing or damaged, or its arrays are not those of the set.
    """
    if split not in COUNTS[name]:
        raise InputError(f'{name} has the splits train and test, not {split!r}.')
    if path.suffix.lower() == '.zip':
        raise InputError(f'{path} is an archive; unpack it and give the .mat file or its folder.')
    if path.is_dir():
        wanted = f'sat-{name[-1]}-full.mat'
        found = sorted(path.rglob(wanted))
        if not found:
            raise InputError(f'{path} holds no {wanted}; give the file or its folder.')
        path = found[0]
    x, y = _arrays(path, split)
    words = CLASSES[name]
    if x.ndim != 4 or x.shape[:3] != (28, 28, 4):
        raise InputError(f'{path}: {split}_x is {list(x.shape)} instead of [28, 28, 4, N]; get the file again.')
    y = y if y.shape[0] == len(words) else y.T
    count = x.shape[3]
    if y.shape != (len(words), count) or not (y.sum(0) == 1).all():
        raise InputError(f'{path}: {split}_y is {list(y.shape)} and no one-hot table of {len(words)} classes.')
    notes: tuple[str, ...] = ()
    expected = COUNTS[name][split]
    if count != expected:
        if not partial:
            raise InputError(
                f'{path} has {count:,} {split} images instead of {expected:,}; get the file again, or '
                'accept a part with --partial.'
            )
        notes = (f'partial: {count:,} of {expected:,} images',)

    def read(row: int) -> npt.NDArray[Any]:
        return np.moveaxis(x[..., row], -1, 0)

    items = [f'{split}/{i}' for i in range(count)]
    return ImageSet(
        name,
        split,
        items,
        read,
        _BANDS,
        classes=words,
        labels=y.argmax(0).astype(np.int64),
        state=lambda: Tree(path.parent).state([path.name]),
        partial=bool(notes),
        notes=notes,
    )


def _arrays(path: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    from scipy.io import loadmat

    keys = [f'{split}_x', f'{split}_y']
    try:
        content = loadmat(str(path), variable_names=keys)
        return content[keys[0]], np.asarray(content[keys[1]])
    except KeyError:
        raise InputError(f'{path} has no {keys[0]}; it is another file than the published one.') from None
    except Exception as error:  # scipy raises what its parts raise
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read as a MATLAB file ({reason}); get it again.') from None
