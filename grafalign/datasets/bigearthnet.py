"""BigEarthNet, Sentinel-2 part, versions 1 (19 or 43 classes) and 2 (19 classes): several classes an image.

    v1   PATCH/PATCH_B02.tif ... and PATCH/PATCH_labels_metadata.json; test.csv lists patches of the split
    v2   BigEarthNet-S2/TILE/PATCH/PATCH_B02.tif ... and metadata.parquet

Bands lie in files of their own and in three resolutions; those of 20 and 60 m are brought to the 120 px of the others.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from PIL import Image

from grafalign.datasets.class_folders import SENTINEL2_RANGE, places_of
from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.pictures import read_picture
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError

BANDS = ('B04', 'B03', 'B02', 'B01', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')
_SIDE = 120
SPLIT_SIZES = {
    'v1': {'train': 269_695, 'val': 123_723, 'test': 125_866},
    'v2': {'train': 237_871, 'val': 122_342, 'test': 119_825},
}


def class_names(count: int) -> tuple[str, ...]:
    """The 19 or 43 names as published, in the order of the authors' index."""
    nomenclature = _nomenclature()
    return tuple(nomenclature['classes19'] if count == 19 else nomenclature['to19'])


def load_bigearthnet(
    tree: Tree, split: str = 'test', classes: int = 19, bands: Sequence[str] = BANDS, *, partial: bool = False
) -> ImageSet:
    """BigEarthNet, whichever version is there.

    Args:
        tree: the folder that holds it.
        split: `train`, `val`, `test`, or `all`.
        classes: 19, or 43 for version 1.
        bands: which to read; those that a model does not take cost nothing if they are left out.
        partial: accept missing patches.

    Raises:
        GrafalignError: neither layout is there, a list or patches are missing, or version 2 is asked for 43 classes.
    """
    if classes not in (19, 43):
        raise InputError(f'BigEarthNet has 19 or 43 classes, not {classes}.')
    if not tree.path.is_dir():
        raise InputError(f'{tree.path} is an archive; unpack BigEarthNet and give its folder.')
    if split not in ('train', 'val', 'test', 'all'):
        raise InputError(f'BigEarthNet has the splits train, val and test, not {split!r}.')
    if _beside(tree.path, ['metadata.parquet']) is not None:
        if classes == 43:
            raise InputError(f'{tree.path} is version 2 of BigEarthNet, which has 19 classes only.')
        return _version_2(tree, split, bands, partial)
    return _version_1(tree, split, classes, bands, partial)


def _nomenclature() -> dict[str, Any]:
    text = (files('grafalign.datasets') / 'bigearthnet.yaml').read_text(encoding='utf-8')
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def _version_1(tree: Tree, split: str, classes: int, bands: Sequence[str], partial: bool) -> ImageSet:
    ending = '_labels_metadata.json'
    folder_of = _patches(tree.path)
    if not folder_of:
        raise InputError(
            f'{tree.path} holds neither PATCH/PATCH{ending} (BigEarthNet v1) nor metadata.parquet '
            '(v2); give its folder.'
        )
    notes: list[str] = []
    if split == 'all':
        patches = sorted(folder_of)
        if len(patches) != 590_326:
            notes.append(_partial('bigearthnet', len(patches), 590_326, partial, str(tree.path)))
    else:
        patches = _listed(tree, split)
        there = [p for p in patches if p in folder_of]
        expected = SPLIT_SIZES['v1'][split]
        if len(there) != expected:
            notes.append(_partial(f'bigearthnet {split}', len(there), expected, partial, str(tree.path)))
        patches = there
    nomenclature = _nomenclature()
    names = class_names(classes)
    column = {n: i for i, n in enumerate(names)}
    many = np.zeros((len(patches), len(names)), dtype=bool)
    for row, patch in enumerate(patches):
        where = f'{folder_of[patch]}/{patch}{ending}'
        try:
            labels = json.loads(tree.text(where))['labels']
            for label in labels:
                kept = label if classes == 43 else nomenclature['to19'][label]
                if kept is not None:
                    many[row, column[kept]] = True
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{where} is damaged ({error!r}); get that patch again.') from None
    labelled = many.any(1)
    if not labelled.all():
        notes.append(f'{int((~labelled).sum()):,} patches with none of the {classes} classes were left out')
    name = f'bigearthnet{classes}'
    whole = _image_set(name, split, tree, [folder_of[p] for p in patches], many, names, bands, notes)
    return whole if labelled.all() else whole.subset(np.flatnonzero(labelled), split)


def _version_2(tree: Tree, split: str, bands: Sequence[str], partial: bool) -> ImageSet:
    where = _beside(tree.path, ['metadata.parquet'])
    try:
        table = pd.read_parquet(where)
        parts = table['split'].replace('validation', 'val')
        table = table if split == 'all' else table[parts == split]
        table = table.sort_values('patch_id')
        patch_ids, labels = table['patch_id'].tolist(), table['labels'].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f'{where} is damaged or of another version ({error}); get it again.') from None
    folder_of = _patches(tree.path)
    rows = [i for i, p in enumerate(patch_ids) if p in folder_of]
    expected = sum(SPLIT_SIZES['v2'].values()) if split == 'all' else SPLIT_SIZES['v2'][split]
    notes = [] if len(rows) == expected else [_partial('bigearthnet v2', len(rows), expected, partial, str(tree.path))]
    names = class_names(19)
    column = {n: i for i, n in enumerate(names)}
    many = np.zeros((len(rows), len(names)), dtype=bool)
    for number, row in enumerate(rows):
        for label in labels[row]:
            if label not in column:
                raise InputError(f'{where}: {patch_ids[row]} has the class {label!r}, which is none of the 19.')
            many[number, column[label]] = True
    items = [folder_of[patch_ids[i]] for i in rows]
    return _image_set('bigearthnet19v2', split, tree, items, many, names, bands, notes)


def _patches(root: Path) -> dict[str, str]:
    """Folders of all Sentinel-2 patches by their names; nothing inside them is listed: they hold millions of files."""
    found: dict[str, str] = {}
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir() or entry.name.startswith(('.', 'S1')):
                    continue
                if Path(entry.path, f'{entry.name}_B04.tif').exists():
                    found[entry.name] = os.path.relpath(entry.path, root)
                else:
                    waiting.append(entry.path)
    return found


def _beside(root: Path, names: list[str]) -> Path | None:
    """The first file of these names in a folder, in those inside it, or beside it."""
    for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith('S')), root.parent):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def _partial(what: str, found: int, expected: int, partial: bool, path: str) -> str:
    if not partial:
        raise InputError(
            f'{what}: {path} holds {found:,} patches instead of {expected:,}; get the whole set, or accept a part with '
            '--partial.'
        )
    return f'partial: {found:,} of {expected:,} patches'


def _listed(tree: Tree, split: str) -> list[str]:
    """Patches of a split, from its published list: one a line, the Sentinel-2 name first."""
    names = [f'{split}.csv', f'bigearthnet-{split}.csv']
    found = _beside(tree.path, names)
    if found is None:
        raise InputError(
            f'{tree.path} has no list {names[0]} of the split {split} (published with the 19-class models of '
            'BigEarthNet); put it there.'
        )
    return sorted(
        row[0].strip()
        for row in csv.reader(io.StringIO(found.read_text(encoding='utf-8-sig')))
        if row and row[0].strip()
    )


def _image_set(
    name: str,
    split: str,
    tree: Tree,
    items: list[str],
    many: npt.NDArray[np.bool_],
    names: tuple[str, ...],
    bands: Sequence[str],
    notes: list[str],
) -> ImageSet:
    def read(row: int) -> npt.NDArray[Any]:
        patch = PurePosixPath(items[row]).name
        return np.stack([_band(tree, f'{items[row]}/{patch}_{band}.tif') for band in bands])

    first = [f'{item}/{PurePosixPath(item).name}_{bands[0]}.tif' for item in items]

    @functools.cache
    def lonlat() -> npt.NDArray[np.float64] | None:
        return places_of(tree, first)

    words = tuple(n[0].lower() + n[1:] for n in names)
    return ImageSet(
        name,
        split,
        items,
        read,
        tuple(bands),
        SENTINEL2_RANGE,
        words,
        many=many,
        lonlat=lonlat,
        state=lambda: tree.state(f'{item}/{PurePosixPath(item).name}_{band}.tif' for item in items for band in bands),
        partial=any(note.startswith('partial') for note in notes),
        notes=tuple(notes),
    )


def _band(tree: Tree, name: str) -> npt.NDArray[np.float32]:
    pixels = read_picture(tree.source(name), name)[0].astype(np.float32)
    if pixels.shape == (_SIDE, _SIDE):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
