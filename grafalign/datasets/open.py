"""A data set by a few words: NAME:PATH, or NAME:PATH@SPLIT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from grafalign.datasets.bigearthnet import BANDS, load_bigearthnet
from grafalign.datasets.captions import PUBLISHED, load_captions
from grafalign.datasets.class_folders import load_folder, load_published, published
from grafalign.datasets.deepsat import CLASSES, load_deepsat
from grafalign.datasets.fmow import load_fmow
from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.mlrsnet import load_mlrsnet_labels
from grafalign.datasets.own import load_masks, load_table
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError

OWN = ('folder', 'csv', 'captions', 'masks')
_DEFAULT_SPLIT = {'bigearthnet19': 'test', 'bigearthnet43': 'test', 'sat4': 'test', 'sat6': 'test', 'fmow': 'val'}


def known_sets() -> list[str]:
    """Names of the published sets."""
    folders = [n for n in published() if n not in ('mlrsnet', 'fmow')]
    others = ['eurosat13', 'mlrsnet', 'mlrsnet46', 'bigearthnet19', 'bigearthnet43', 'fmow']
    return sorted([*folders, *others, *CLASSES, *PUBLISHED])


def split_spec(spec: str) -> tuple[str, str, str | None]:
    """Name, path and split of `NAME:PATH@SPLIT`.

    Raises:
        GrafalignError: there is no name or no path.
    """
    name, colon, rest = spec.partition(':')
    if not colon or not name or not rest:
        raise InputError(f'{spec} is not understood; write NAME:PATH, such as eurosat:data/EuroSAT_RGB.')
    path, at, split = rest.rpartition('@')
    return (name, path, split) if at and '/' not in split else (name, rest, None)


def open_set(
    spec: str,
    *,
    partial: bool = False,
    classes: list[str] | None = None,
    bands: tuple[str, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> ImageSet:
    """Open a data set from local files.

    Args:
        spec: `eurosat:PATH`, `rsicd:PATH@test`, `folder:PATH`, `csv:TABLE`, `captions:PATH`, `masks:PATH` ...
        partial: accept a set that is not whole; results are marked.
        classes: words for the classes, instead of the set's own.
        bands: names of the bands of one's own pictures.
        value_range: values of one's own pictures that become black and white.

    Raises:
        GrafalignError: there is no such set, or its files are not as published.
    """
    name, where, split = split_spec(spec)
    path = Path(where)
    if value_range is not None and not value_range[0] < value_range[1]:
        raise InputError(f'The value range {value_range} is none; give the smaller value first.')
    found = _open(name, path, split, partial, bands, value_range, classes)
    if classes is not None and found.classes != tuple(classes):
        if len(classes) != len(found.classes):
            raise InputError(f'{len(classes)} class names were given and {name} has {len(found.classes)} classes.')
        found = replace(found, classes=tuple(classes))
    return found


def _captions_at(path: Path) -> tuple[Tree, str | None]:
    """The files of a caption set, and the name of its description where that was given."""
    if path.suffix.lower() in ('.json', '.jsonl'):
        if not path.is_file():
            raise InputError(f'There is no file {path}; give the description of a caption set, or its folder.')
        return Tree(path.parent), path.name
    return Tree(path), None


def _open(
    name: str,
    path: Path,
    split: str | None,
    partial: bool,
    bands: tuple[str, ...] | None,
    value_range: tuple[float, float] | None,
    classes: list[str] | None,
) -> ImageSet:
    part = split or _DEFAULT_SPLIT.get(name, 'all')
    if name in OWN:
        title = path.stem if path.is_file() else path.resolve().name
        if name == 'csv':
            return load_table(path, title, part, bands, value_range)
        if split is not None and name in ('masks', 'folder'):
            raise InputError(f'{name}:{path} has no splits; give the folder of the part, or use csv:TABLE@{split}.')
        if name == 'masks':
            return load_masks(path, title, bands, value_range)
        if name == 'captions':
            return load_captions(title, *_captions_at(path), part, partial=partial)
        return load_folder(Tree(path), title, classes, bands, value_range)
    if name in PUBLISHED:
        return load_captions(name, *_captions_at(path), split or 'test', partial=partial)
    if name in CLASSES:
        return load_deepsat(name, path, part, partial=partial)
    if name in ('bigearthnet19', 'bigearthnet43'):
        return load_bigearthnet(Tree(path), part, int(name[-2:]), bands or BANDS[:3], partial=partial)
    if name == 'mlrsnet':
        if split not in (None, 'all'):
            raise InputError('mlrsnet has no published split; use all of it (no split).')
        return load_mlrsnet_labels(Tree(path), partial=partial)
    if name == 'fmow':
        return load_fmow(Tree(path), part)
    if name in known_sets():
        found = load_published('mlrsnet' if name == 'mlrsnet46' else name, Tree(path), part, partial=partial)
        return replace(found, name=name)
    raise InputError(
        f'There is no data set {name!r}; the published ones are {", ".join(known_sets())}, and your own go by '
        f'{", ".join(f"{n}:PATH" for n in OWN)}.'
    )
