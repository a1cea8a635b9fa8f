"""MLRSNet with its 60 labels; its 46 folders alone are a set of `class_folders.py`."""

from __future__ import annotations

import csv
import io
from pathlib import PurePosixPath

import numpy as np

from grafalign.datasets.class_folders import load_published, published
from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError


def load_mlrsnet_labels(tree: Tree, *, partial: bool = False) -> ImageSet:
    """MLRSNet with its 60 labels, of which an image has up to 13.

    Columns are read by their names: their order differs between files. Files with rows of more than 13 labels are those
    that were damaged in the repository in 2021, and refused.

    Raises:
        GrafalignError: label files are missing or damaged.
    """
    found = load_published('mlrsnet', tree, partial=partial)
    words: dict[str, str] = published()['mlrsnet']['labels']
    known: dict[str, list[str]] = {}
    for name in tree.names:
        if not name.lower().endswith('.csv') or 'label' not in name.lower():
            continue
        rows = csv.DictReader(io.StringIO(tree.text(name)))
        lacking = set(words) - {k.strip() for k in rows.fieldnames or ()}
        if len(lacking) > 1:  # of the clean files of 2020 one header of storage_tank is blank
            raise InputError(f'{name} has no column {sorted(lacking)[0]}; get the label files again.')
        for number, row in enumerate(rows, 2):
            labels = [k.strip() for k, v in row.items() if k and k.strip() in words and (v or '').strip() == '1']
            if len(labels) > 13:
                raise InputError(
                    f'{name}, line {number}: {len(labels)} labels, and an image of MLRSNet has at most 13; this file '
                    'is damaged as published in 2021, take the one of 2020.'
                )
            known[(row.get('image') or '').strip()] = labels
    if not known:
        raise InputError(f'{tree.path} has no label files (Labels/*.csv); get them, or use mlrsnet46 for its folders.')
    many = np.zeros((len(found), len(words)), dtype=bool)
    columns = {name: i for i, name in enumerate(words)}
    for i, item in enumerate(found.items):
        mine = known.get(PurePosixPath(item).name)
        if mine is None:
            raise InputError(f'mlrsnet: {item} has no row in the label files; get the whole set.')
        many[i, [columns[t] for t in mine]] = True
    return ImageSet(
        'mlrsnet',
        found.split,
        found.items,
        found.read,
        classes=tuple(words.values()),
        many=many,
        state=found.state,
        partial=found.partial,
        notes=found.notes,
    )
