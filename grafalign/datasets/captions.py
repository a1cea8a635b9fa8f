"""Images with captions: the Karpathy JSON form (RSICD, RSITMD, UCM, Sydney), NWPU-captions' own, JSON lines.

{"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}, ...]}, ...]}          Karpathy
{"airplane": [{"filename": ..., "split": ..., "raw": ..., "raw_1": ..., ...}, ...], ...}      NWPU
{"image": ..., "captions": [...], "class": ...}                                               one a line
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.datasets.class_folders import in_words
from grafalign.datasets.image_set import ImageSet
from grafalign.datasets.pictures import coloured, default_range, is_picture, read_picture
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError


@dataclass(frozen=True)
class PublishedCaptions:
    """What a published caption set looks like."""

    file: str
    sizes: dict[str, int]
    """Images of each split."""


PUBLISHED = {
    'rsicd': PublishedCaptions('dataset_rsicd.json', {'train': 8734, 'val': 1094, 'test': 1093}),
    'rsitmd': PublishedCaptions('dataset_RSITMD.json', {'train': 4291, 'test': 452}),
    'ucm_captions': PublishedCaptions('dataset.json', {'train': 1680, 'val': 210, 'test': 210}),
    'sydney_captions': PublishedCaptions('dataset.json', {'train': 497, 'val': 58, 'test': 58}),
    'nwpu_captions': PublishedCaptions('dataset_nwpu.json', {'train': 25_200, 'val': 3150, 'test': 3150}),
}
MISSING = {'nwpu_captions': ('airplane_111.jpg',)}
"""Pictures that the JSON of a set names and its archive has not."""
_RAW = ('raw', 'raw_1', 'raw_2', 'raw_3', 'raw_4')


@dataclass(frozen=True)
class CaptionEntry:
    """An image of a caption file."""

    file: str
    split: str
    captions: tuple[str, ...]
    label: str | None = None


def load_captions(
    name: str, tree: Tree, file: str | None = None, split: str = 'test', *, partial: bool = False
) -> ImageSet:
    """A caption set; `name` is one of `PUBLISHED`, or anything for one's own file.

    Args:
        name: what results call it.
        tree: the folder (or zip archive) with the JSON and the images.
        file: the JSON, where it has not the published name.
        split: a split of the file, or `all`.
        partial: accept another number of images than published, and leave out images that are missing.

    Raises:
        GrafalignError: a file is missing or of another form, an image has no caption or is missing, or a count differs.
    """
    published = PUBLISHED.get(name)
    where = _description(tree, file or (published.file if published else None))
    entries = caption_entries(where, tree.text(where))
    splits = sorted({e.split for e in entries})
    if split != 'all':
        entries = [e for e in entries if e.split == split]
        if not entries:
            raise InputError(f'{where} has no split {split!r}; it has {", ".join(splits)}, or take all.')
    find = picture_finder([n for n in tree.names if is_picture(n)], where)
    known_missing = MISSING.get(name, ())
    found = [(e, find(e.file)) for e in entries]
    absent = [e.file for e, at in found if at is None and PurePosixPath(e.file).name in known_missing]
    found = [(e, at) for e, at in found if e.file not in absent]
    missing = [e.file for e, at in found if at is None]
    notes: list[str] = []
    if missing and not partial:
        raise InputError(
            f'{where} names {missing[0]}, which is not among the pictures of {tree.path} '
            f'({len(missing):,} missing); get the whole set, or accept a part with --partial.'
        )
    if missing:
        notes.append(f'partial: {len(missing):,} images that are missing were left out')
    kept = [(e, at) for e, at in found if at is not None]
    expected = (
        None if published is None else sum(published.sizes.values()) if split == 'all' else published.sizes.get(split)
    )
    listed = len(kept) + len(absent)
    notes += [f'{file} was left out: the published archive has no such picture' for file in absent]
    if expected is not None and listed != expected:
        if not partial:
            raise InputError(
                f'{name}: {where} has {len(kept):,} {split} images instead of {expected:,}; get the '
                'whole set, or accept a part with --partial.'
            )
        notes.append(f'partial: {len(kept):,} of {expected:,} images')
    bare = next((e.file for e, _ in kept if not e.captions), None)
    if bare is not None:
        raise InputError(f'{where}: {bare} has no caption; add one, or take the image out of the list.')
    items = [at for _, at in kept]
    labels = sorted({e.label for e, _ in kept if e.label is not None})
    labelled = len(labels) > 1 and all(e.label is not None for e, _ in kept)
    numbers = np.array([labels.index(str(e.label)) for e, _ in kept]) if labelled else None

    def read(row: int) -> npt.NDArray[Any]:
        pixels = coloured(read_picture(tree.source(items[row]), items[row]))
        if pixels.dtype != np.uint8:
            default_range(str(pixels.dtype), items[row])
        return pixels

    return ImageSet(
        name,
        split,
        items,
        read,
        classes=tuple(in_words(v) for v in labels) if numbers is not None else (),
        labels=numbers,
        captions=[e.captions for e, _ in kept],
        state=lambda: tree.state([where, *items]),
        partial=any(note.startswith('partial') for note in notes),
        notes=tuple(notes),
    )


def picture_finder(pictures: list[str], where: str) -> Callable[[str], str | None]:
    """Where a picture of a description is: by as much of its path as is needed to tell it from others.

    Raises:
        GrafalignError: several pictures fit equally well.
    """
    by_name: dict[str, list[str]] = {}
    for name in pictures:
        by_name.setdefault(PurePosixPath(name).name.lower(), []).append(name)

    def find(file: str) -> str | None:
        wanted = PurePosixPath(file.lower()).parts
        there = by_name.get(wanted[-1], [])
        if len(there) < 2:
            return there[0] if there else None
        shared = []
        for name in there:
            parts = PurePosixPath(name.lower()).parts
            pairs = zip(reversed(parts), reversed(wanted), strict=False)
            shared.append(next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(wanted))))
        best = [name for name, many in zip(there, shared, strict=True) if many == max(shared)]
        if len(best) > 1:
            raise InputError(
                f'{where} names {file}, and {best[0]} and {best[1]} are both called that; give the folder of one set.'
            )
        return best[0]

    return find


def _description(tree: Tree, file: str | None) -> str:
    """The JSON that describes the set."""
    names = {PurePosixPath(n).name.lower(): n for n in reversed(tree.names)}
    wanted = [file] if file else ['captions.jsonl', 'dataset.json']
    for name in wanted:
        if name.lower() in names:
            return names[name.lower()]
    others = [n for n in tree.names if n.lower().endswith(('.json', '.jsonl'))]
    if file is None and len(others) == 1:
        return others[0]
    raise InputError(f'{tree.path} has no {" or ".join(wanted)}; give the folder that holds it and the images.')


def caption_entries(where: str, text: str) -> list[CaptionEntry]:
    """The images of a caption file, in its order.

    Args:
        where: its name, for errors and for its form: `.jsonl` has an image a line.
        text: its content.

    Raises:
        GrafalignError: it is of no known form.
    """
    try:
        if where.lower().endswith('.jsonl'):
            return [_line(where, n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        content = json.loads(text)
        if 'images' in content:
            return [
                CaptionEntry(
                    str(i['filename']),
                    str(i.get('split', 'all')),
                    tuple(s['raw'].strip() for s in i['sentences'] if s['raw'].strip()),
                )
                for i in content['images']
            ]
        return [
            CaptionEntry(
                f'{label}/{i["filename"]}',
                str(i['split']),
                tuple(i[k].strip() for k in _RAW if (i.get(k) or '').strip()),
                label,
            )
            for label, images in content.items()
            for i in images
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f'{where} is no caption file of a known form ({error!r}); see the data sets in the docs for the forms.'
        ) from None


def _line(where: str, number: int, line: str) -> CaptionEntry:
    entry = json.loads(line)
    captions = entry.get('captions')
    if not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise InputError(f'{where}, line {number}: {entry.get("image")} has a missing caption; write one, or drop it.')
    label = entry.get('class')
    split = str(entry.get('split', 'all'))
    return CaptionEntry(
        str(entry['image']), split, tuple(c.strip() for c in captions), None if label is None else str(label)
    )
