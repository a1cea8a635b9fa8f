"""Sets with one folder a class: EuroSAT, UC Merced, RESISC45, AID, PatternNet, WHU-RS19, MLRSNet, and one's own.

Class names, layouts and counts of the published ones are in `published.yaml`. A count that differs is an error that
says where images are missing: a number measured on part of a set is not the set's number.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from grafalign import engine
from grafalign.datasets.image_set import RGB, ImageSet
from grafalign.datasets.pictures import (
    BANDS_BY_COUNT,
    RASTERS,
    check_depth,
    coloured,
    default_range,
    is_picture,
    picture_metadata,
    read_picture,
)
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError

EUROSAT_BANDS = (
    *('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B09', 'B10', 'B11', 'B12'),
    'B8A',
)
"""Of EuroSAT's 13-band files, in their order; B8A is last."""
SENTINEL2_RANGE = (0.0, 3000.0)
"""Numbers of Sentinel-2 (reflectance times 10,000) that become black and white; as GRAFT's users have it."""


def published() -> dict[str, dict[str, Any]]:
    """What is known of the published sets, by name."""
    text = (files('grafalign.datasets') / 'published.yaml').read_text(encoding='utf-8')
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def load_published(name: str, tree: Tree, split: str = 'all', *, partial: bool = False) -> ImageSet:
    """One of `published.yaml`.

    Args:
        name: its key; `eurosat13` is EuroSAT with all its bands.
        tree: its files, or those of a folder around them.
        split: `all`, or a part for which the published list of names lies beside the images.
        partial: accept missing images; the result is then marked.

    Raises:
        GrafalignError: a class folder or images are missing, or there is no such split.
    """
    every_band = name == 'eurosat13'
    description = published()['eurosat' if every_band else name]
    folders = description['classes']
    tree = _root(tree, description['roots13' if every_band else 'roots'], set(folders), name)
    here, unknown = pictures_by_class(tree, folders)
    missing = [folder for folder in folders if not here[folder]]
    if missing and not partial:
        raise InputError(
            f'{name}: {tree.path} has no images of {len(missing)} of {len(folders)} classes ({", ".join(missing[:4])}'
            f'{" ..." if len(missing) > 4 else ""}); get the whole set, or accept a part with --partial.'
        )
    counts = {f: (len(here[f]), v[1]) for f, v in folders.items() if len(v) > 1}
    wrong = {f: c for f, c in counts.items() if c[0] != c[1]}
    notes: list[str] = []
    if wrong:
        folder, (found, expected) = next(iter(wrong.items()))
        said = (
            f'{name}: {folder} has {found:,} images instead of {expected:,}'
            f'{f", and {len(wrong) - 1} more classes differ" if len(wrong) > 1 else ""}'
        )
        if not partial:
            raise InputError(f'{said}; get the whole set, or accept a part with --partial.')
        notes.append(
            f'partial: {sum(c[0] for c in counts.values()):,} of {sum(c[1] for c in counts.values()):,} images'
        )
    if unknown:
        notes.append(f'folders that are no class of the set were left out: {", ".join(unknown[:5])}')
    items = [n for folder in folders for n in here[folder]]
    labels = np.repeat(np.arange(len(folders)), [len(here[f]) for f in folders])
    found_set = _image_set(
        name, tree, items, tuple(v[0] for v in folders.values()), labels,
        EUROSAT_BANDS if every_band else RGB, SENTINEL2_RANGE if every_band else (0.0, 255.0), notes, bool(wrong),
    )  # fmt: skip
    return found_set if split == 'all' else _split(found_set, tree, description, split, partial)


def load_folder(
    tree: Tree,
    name: str,
    classes: Sequence[str] | None = None,
    bands: tuple[str, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> ImageSet:
    """One's own set: a folder a class, its name made into words.

    Args:
        tree: the files; the first folder of a name is the class.
        name: what results call it.
        classes: words for the folders, in the order of their names.
        bands: names of the bands; by their number otherwise.
        value_range: values that become black and white; needed for other than 8 bits.

    Raises:
        GrafalignError: there are fewer than two classes, a folder is empty, or nobody has said what the numbers mean.
    """
    pictures = [n for n in tree.names if is_picture(n) and '/' in n]
    folders = sorted({n.partition('/')[0] for n in pictures})
    if tree.path.is_dir():
        inside = (tree.path / tree.inside).iterdir()
        there = {p.name for p in inside if p.is_dir() and not p.name.startswith(('.', '__MACOSX'))}
        empty = sorted(there - set(folders))
        if empty:
            raise InputError(f'{tree.path}: the class folder {empty[0]} holds no pictures; fill or remove it.')
    if len(folders) < 2:
        have = f'only the class {folders[0]}' if folders else 'no folder with pictures'
        raise InputError(f'{tree.path} has {have}; classification needs a folder of pictures for each class.')
    if classes is not None and len(classes) != len(folders):
        raise InputError(
            f'{len(classes)} class names were given and {tree.path} has {len(folders)} folders '
            f'({", ".join(folders[:4])} ...); give one a folder, in the order of the folders.'
        )
    labels = np.array([folders.index(n.partition('/')[0]) for n in pictures])
    metadata = picture_metadata(tree.source(pictures[0]), pictures[0])
    known = bands or BANDS_BY_COUNT.get(metadata.bands)
    if known is None:
        raise InputError(f'{pictures[0]} has {metadata.bands} bands; name them, such as --bands red,green,blue,nir.')
    span = value_range or default_range(metadata.dtype, f'{tree.path}/{pictures[0]}')
    words = tuple(classes) if classes is not None else tuple(in_words(f) for f in folders)
    return _image_set(name, tree, pictures, words, labels, known, span, [])


def in_words(folder: str) -> str:
    """A folder's name as words: `SeaLake` and `sea_lake` become `sea lake`."""
    spaced = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', ' ', folder)
    return ' '.join(re.split(r'[\s_]+', spaced)).strip().lower()


def _root(tree: Tree, roots: list[str], folders: set[str], name: str) -> Tree:
    """The tree whose first folders are classes."""
    lower = {f.lower() for f in folders}

    def fits(candidate: Tree) -> bool:
        return len({n.partition('/')[0].lower() for n in candidate.names if '/' in n} & lower) >= 2

    if fits(tree):
        return tree
    found = tree.find_folder(roots)
    if found is not None and fits(found):
        return found
    for first in sorted({n.partition('/')[0] for n in tree.names if '/' in n}):
        below = tree.below(first)
        inner = below if fits(below) else below.find_folder(roots)
        if inner is not None and fits(inner):
            return inner
    raise InputError(
        f'{name}: {tree.path} has no class folders such as {sorted(folders)[0]}; give the folder or '
        'zip archive of the set.'
    )


def pictures_by_class(tree: Tree, folders: dict[str, Any]) -> tuple[dict[str, list[str]], list[str]]:
    """Pictures of each class folder, in any case, and the folders that are none."""
    spelling = {f.lower(): f for f in folders} | {in_words(f): f for f in folders}
    here: dict[str, list[str]] = {f: [] for f in folders}
    unknown: dict[str, None] = {}
    for name in tree.names:
        folder, slash, _ = name.partition('/')
        if not slash or not is_picture(name):
            continue
        known = spelling.get(folder.lower())
        if known is None:
            unknown[folder] = None
        else:
            here[known].append(name)
    return here, list(unknown)


def _image_set(
    name: str,
    tree: Tree,
    items: list[str],
    classes: tuple[str, ...],
    labels: npt.NDArray[np.int64],
    bands: tuple[str, ...],
    value_range: tuple[float, float],
    notes: list[str],
    partial: bool = False,
) -> ImageSet:
    def read(row: int) -> npt.NDArray[Any]:
        pixels = read_picture(tree.source(items[row]), f'{tree.path}/{items[row]}')
        if bands == RGB:
            pixels = coloured(pixels)
        if len(pixels) != len(bands):
            raise InputError(
                f'{tree.path}/{items[row]} has {len(pixels)} bands instead of {len(bands)} ({", ".join(bands)}); '
                'replace it, or name the bands with --bands.'
            )
        check_depth(pixels, value_range, f'{tree.path}/{items[row]}')
        return pixels

    @functools.cache
    def lonlat() -> npt.NDArray[np.float64] | None:
        return places_of(tree, items)

    return ImageSet(
        name,
        'all',
        items,
        read,
        bands,
        value_range,
        classes,
        labels,
        lonlat=lonlat,
        state=lambda: tree.state(items),
        partial=partial,
        notes=tuple(notes),
    )


def places_of(tree: Tree, items: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """Centres [N, 2] (longitude, latitude) of images that know where they are; None where one does not."""
    if not items or not all(n.lower().endswith(RASTERS) for n in items):
        return None
    if picture_metadata(tree.source(items[0]), items[0]).bounds is None:
        return None
    places = np.full((len(items), 2), np.nan)
    for row, metadata in engine.run(lambda n: picture_metadata(tree.source(n), n), items):
        if metadata.bounds is None:
            return None
        west, south, east, north = metadata.bounds
        middle = (west + east) / 2 if west <= east else (west + east + 360) / 2  # over the date line
        places[row] = (middle + 180) % 360 - 180, (south + north) / 2
    return places


def _split(whole: ImageSet, tree: Tree, description: dict[str, Any], split: str, partial: bool) -> ImageSet:
    """The part of a set that a published list names, by file names without their endings."""
    pattern = description.get('splits')
    if pattern is None:
        raise InputError(f'{whole.name} has no published split; use all of it (no split).')
    if split not in description['split_sizes']:
        raise InputError(f'{whole.name} has the splits {", ".join(description["split_sizes"])}, not {split!r}.')
    name = pattern.format(split=split)
    places = [p for p in (tree.path / name, tree.path.parent / name) if p.is_file()]
    if places:
        text = places[0].read_text(encoding='utf-8')
    else:
        tree = Tree(tree.path)
        inside = next((n for n in tree.names if PurePosixPath(n).name == name), None)
        if inside is None:
            raise InputError(
                f'{whole.name}: the list {name} of the split {split} lies neither in {tree.path} nor beside it; put it '
                'there, or use the whole set (no split).'
            )
        text = tree.text(inside)
    listed = [PurePosixPath(line.strip()).stem for line in text.splitlines() if line.strip()]
    expected = description['split_sizes'][split]
    if len(listed) != expected and not partial:
        raise InputError(f'{name} lists {len(listed):,} images instead of {expected:,}; get it again.')
    row_of = {PurePosixPath(n).stem: i for i, n in enumerate(whole.items)}
    missing = [stem for stem in listed if stem not in row_of]
    if missing and not partial:
        raise InputError(
            f'{whole.name}: {missing[0]} of {name} is not there ({len(missing):,} missing); get the whole set.'
        )
    part = whole.subset(np.array(sorted(row_of[s] for s in listed if s in row_of), dtype=np.int64), split)
    if len(part) == expected:
        return part
    return replace(part, partial=True, notes=(*part.notes, f'partial: {len(part):,} of {expected:,} images'))
