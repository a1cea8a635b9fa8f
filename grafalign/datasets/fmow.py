"""Functional Map of the World (Christie et al., CVPR 2018): its RGB pictures, cut to the box of each."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.datasets.class_folders import pictures_by_class, published
from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.pictures import coloured, read_picture
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError


def load_fmow(tree: Tree, split: str = 'val') -> ImageSet:
    """Functional Map of the World, its RGB files: SPLIT/CLASS/CLASS_n/CLASS_n_i_rgb.jpg beside a .json.

    What is shown is the box of the .json with the margin of the authors' baseline (half of 15 % of a side on each end,
    more where the box is a small part of the picture); without a .json the whole picture. The class is the folder's.
    Counts are not checked: no list of them was found.

    Raises:
        GrafalignError: there is no such split, or no picture in it.
    """
    description = published()['fmow']
    root = tree.find_folder([split, *(f'{r}/{split}' for r in description['roots'])])
    if root is None and (tree.path / tree.inside).name.lower() == split:
        root = tree
    if root is None:
        raise InputError(f'fmow: {tree.path} has no folder {split}/CLASS; give the folder that holds {split}.')
    folders = description['classes']
    here, _ = pictures_by_class(root, folders)
    items = [n for f in folders for n in here[f] if n.lower().endswith('_rgb.jpg')]
    if not items:
        raise InputError(f'fmow: {tree.path} has no {split}/CLASS/*/*_rgb.jpg; give the folder that holds {split}.')
    order = list(folders)
    spelling = {f.lower(): f for f in folders}
    labels = np.array([order.index(spelling[n.partition('/')[0].lower()]) for n in items])

    beside = [item[: -len('.jpg')] + '.json' for item in items]

    def read(row: int) -> npt.NDArray[Any]:
        pixels = coloured(read_picture(root.source(items[row]), items[row]))
        return _boxed(pixels, root.text(beside[row])) if root.has(beside[row]) else pixels

    words = tuple(v[0] for v in folders.values())
    return ImageSet(
        'fmow',
        split,
        items,
        read,
        classes=words,
        labels=labels,
        notes=('counts not checked',),
        state=lambda: root.state([*items, *beside]),
    )


def _boxed(pixels: npt.NDArray[Any], text: str) -> npt.NDArray[Any]:
    """The part of a picture that its box and a margin cover."""
    try:
        boxes = json.loads(text)['bounding_boxes']
        box = next(b for b in (boxes if isinstance(boxes, list) else [boxes]) if b.get('ID', 0) != -1)
        left, top, width, height = (float(v) for v in box['box'])
    except (ValueError, KeyError, TypeError, StopIteration):
        return pixels
    rows, cols = pixels.shape[-2:]
    down, across = _margin(height, rows), _margin(width, cols)
    first, last = max(0, int(top) - down), min(rows, int(top + height) + down)
    begin, end = max(0, int(left) - across), min(cols, int(left + width) + across)
    return pixels[:, first:last, begin:end] if last > first and end > begin else pixels


def _margin(side: float, whole: float) -> int:
    """Pixels on each end of a box's side."""
    steps = ((0.1, 2.0), (0.2, 1.0), (0.3, 0.5), (0.4, 0.3), (0.5, 0.2))
    return int(side * next((m for limit, m in steps if side / whole < limit), 0.15) / 2)
