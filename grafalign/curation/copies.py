"""Find copies of images inside a caption set and in sets that tests are made on.

Three ways, from certain to likely: equal bytes; pictures whose difference hashes are near in one of the eight forms
and whose thumbnails then agree (hashes alone take fields for other fields); and, where a model is given, embeddings
that are near, which also finds crops and other colours, and strangers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from grafalign import console
from grafalign.captions import CaptionSet
from grafalign.captions.caption_set import is_caption_set
from grafalign.captions.hashes import LEAST_CORRELATION, Hashes, alike, same_picture, symmetric_hashes
from grafalign.captions.leaks import PAIRS, LeaksMarker, leaks_folder
from grafalign.captions.pictures import Pictures
from grafalign.captions.set_hashes import set_hashes
from grafalign.curation.features import image_features
from grafalign.curation.page import selection_page, thumbnail
from grafalign.curation.select import select
from grafalign.datasets import ImageSet, open_set
from grafalign.datasets.pictures import default_range
from grafalign.errors import GrafalignError, InputError, naming_full_disk
from grafalign.files import replacing, write_atomically
from grafalign.locks import exclusive
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.photos.exif import PhotoError
from grafalign.processes import Team
from grafalign.retrieval import nearest

_THUMB_PX = 144
_SHOWN = 60
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Other:
    """A set to compare with: N images."""

    name: str
    digest: str
    """Of what it holds."""
    ids: Sequence[str]
    digests: Sequence[str | None]
    """Of the images' bytes, where known."""
    hashes: Hashes
    """[N, 8]"""
    read: Callable[[int], Image.Image]
    vectors: Callable[[Model], npt.NDArray[np.generic]]
    """Embeddings [N, D] by a model."""


@dataclass(frozen=True)
class Copies:
    """What was found."""

    images: int
    inside: int
    """Images that are copies of an earlier one of the set."""
    leaks: dict[str, int]
    """Images of the set that are in each other set."""
    kept: int | None
    """Images of the set without them, if one was written."""


def find_copies(
    captions: CaptionSet,
    against: Sequence[str] = (),
    out: Path | None = None,
    model: Model | None = None,
    closer_than: float = 0.97,
    workers: int | None = None,
) -> Copies:
    """Report copies inside a set and in others; write a set without them if `out` is given.

    Args:
        captions: the set; one of pictures.
        against: `NAME=SPEC`, where SPEC is a caption set's folder or a data set as `evaluate --data` takes it.
        out: folder of the set that is left: of copies inside the first one stays, of leaks none.
        model: also compare embeddings of this model.
        closer_than: cosine from which on two embeddings are those of a near copy.
        workers: threads that decode.

    Raises:
        GrafalignError: a set is missing, or its images are.
    """
    mine = _of_captions(captions, '', workers)
    others = [_other(text, workers) for text in against]
    repeated = next((o.name for o in others if sum(p.name == o.name for p in others) > 1), None)
    if repeated is not None:
        raise InputError(f'Two sets are called {repeated}; give them names of their own (--against NAME=SPEC).')
    found = [_pairs(mine, None, model, closer_than), *(_pairs(mine, o, model, closer_than) for o in others)]
    table = pd.concat(found, ignore_index=True)
    inside = _later_copies(table[table['against'] == ''], len(captions))
    leaks = {o.name: np.unique(table.loc[table['against'] == o.name, 'image'].to_numpy(np.int64)) for o in others}
    folder = leaks_folder(captions)
    with naming_full_disk(folder), exclusive(folder):
        (folder / 'leaks.json').unlink(missing_ok=True)
        rows = table.assign(against=table['against'].replace('', None))
        with replacing(folder / 'pairs.parquet') as path:
            pq.write_table(pa.Table.from_pandas(rows, PAIRS, preserve_index=False), path)
        write_atomically(folder / 'page.html', _page(captions, table, mine, others, inside).encode())
        _marker(captions, others, model, closer_than).write(folder / 'leaks.json')
    console.log(f'{folder / "page.html"} shows the pairs')
    kept = None
    if out is not None:
        reasons = np.full(len(captions), None, dtype=object)
        reasons[np.asarray(inside, dtype=np.int64)] = 'copy of another image of the set'
        for name, rows in leaks.items():
            reasons[np.asarray(rows, dtype=np.int64)] = f'also in {name}'
        kept = select(captions, out, reasons, {'without copies': True, 'against': list(against)}).images
        clean = CaptionSet(out)  # what was found of its images is known: nothing
        with naming_full_disk(out), exclusive(leaks_folder(clean)):
            pq.write_table(PAIRS.empty_table(), leaks_folder(clean) / 'pairs.parquet')
            _marker(clean, others, model, closer_than).write(leaks_folder(clean) / 'leaks.json')
    return Copies(len(captions), len(inside), {name: len(rows) for name, rows in leaks.items()}, kept)


def embed_sets(captions: CaptionSet, against: Sequence[str], model: Model, workers: int | None, team: Team) -> None:
    """Embed the caption sets that `find_copies` compares by all processes, before the first one compares them.

    Args:
        captions: as of `find_copies`.
        against: as there; data sets are left to the first process.
        model: as there.
        workers: threads that decode.
        team: the processes, all of which call this.
    """
    specs = [spec for _, spec in map(_named, against)]
    for some in (captions, *(CaptionSet(spec) for spec in specs if is_caption_set(spec))):
        image_features(some, model, workers, team=team)


def _marker(captions: CaptionSet, others: Sequence[Other], model: Model | None, closer_than: float) -> LeaksMarker:
    return LeaksMarker(
        format=LeaksMarker.NEWEST,
        images=captions.marker.files['images.parquet'],
        against={o.name: o.digest for o in others},
        closer_than=None if model is None else closer_than,
    )


def _named(text: str) -> tuple[str, str]:
    """Name and specification of another set."""
    name, equals, spec = text.partition('=')
    if not equals or not name or '/' in name or ':' in name:
        return Path(text.rpartition(':')[2]).name, text
    return name, spec


def _other(text: str, workers: int | None) -> Other:
    name, spec = _named(text)
    if is_caption_set(spec):
        return _of_captions(CaptionSet(spec), name, workers)
    return _of_data(open_set(spec, partial=True), name)


def _of_captions(captions: CaptionSet, name: str, workers: int | None) -> Other:
    kept = set_hashes(captions, workers)
    pictures = Pictures(captions)
    ids = captions.images['image_id'].to_pylist()
    digests = captions.images['digest'].to_pylist()
    return Other(
        name,
        captions.marker.files['images.parquet'],
        ids,
        digests,
        kept.hashes,
        lambda row: pictures.read(row, _THUMB_PX),
        lambda model: image_features(captions, model, workers).vectors,
    )


def _of_data(data: ImageSet, name: str) -> Other:
    def read(row: int) -> Image.Image:
        pixels = data.read(row)[:3]
        if pixels.dtype != np.uint8:
            low, high = data.value_range or default_range(str(pixels.dtype), name)
            pixels = (np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]).convert('RGB')

    hashes = np.zeros((len(data.items), 8), dtype=np.uint64)
    for row in console.track(range(len(data.items)), f'hashing {name}'):
        hashes[row] = symmetric_hashes(read(row))

    def vectors(model: Model) -> npt.NDArray[np.float32]:
        read_pixels = lambda row: np.asarray(read(row)).transpose(2, 0, 1)  # noqa: E731
        parts = embed_pictures(model, read_pixels, range(len(data.items)), ('red', 'green', 'blue'), (0.0, 255.0))
        return np.concatenate([found for _, found in parts])

    return Other(name, data.pixels_digest, data.items, [None] * len(data.items), hashes, read, vectors)


def _pairs(mine: Other, other: Other | None, model: Model | None, closer_than: float) -> pd.DataFrame:
    """All pairs between two sets, or inside one, the surest way of each."""
    theirs = other or mine
    parts = [_same_bytes(mine, other)]
    reported = set(map(tuple, parts[0][['image', 'other']].to_numpy().tolist()))
    near = [p for p in _near(mine, other) if tuple(p) not in reported]
    rows = []
    for one, two in console.track(near, 'comparing pictures'):
        try:
            correlation = same_picture(mine.read(one), theirs.read(two))
        except (PhotoError, GrafalignError):
            continue
        if correlation >= LEAST_CORRELATION:
            rows.append((one, two, 'picture', correlation))
            reported.add((one, two))
    if model is not None:
        rows += [r for r in _near_vectors(mine, other, model, closer_than) if (r[0], r[1]) not in reported]
    parts.append(pd.DataFrame(rows, columns=['image', 'other', 'how', 'correlation']))
    table = pd.concat(parts, ignore_index=True)
    table['against'] = '' if other is None else other.name
    table['image_id'] = [mine.ids[int(row)] for row in table['image']]
    table['other_id'] = [theirs.ids[int(row)] for row in table['other']]
    return table[PAIRS.names]


def _near(mine: Other, other: Other | None) -> list[list[int]]:
    """Pairs with near hashes; of images with equal ones the first stands for all, as the web repeats placeholders."""
    look, first = _looks(mine)
    if other is None:
        pairs = first[alike(np.asarray(mine.hashes)[first])]
        structured = np.asarray(mine.hashes)[:, 0] != 0
        later = np.flatnonzero((first[look] != np.arange(len(look))) & structured)
        each_with_first = np.stack([first[look[later]], later], axis=1)
        found = np.unique(np.concatenate([pairs.reshape(-1, 2), each_with_first]), axis=0)
    else:
        _, theirs = _looks(other)
        pairs = alike(np.asarray(mine.hashes)[first], np.asarray(other.hashes)[theirs])
        members = pd.DataFrame({'look': look, 'image': np.arange(len(look))})
        of_look = pd.DataFrame({'look': pairs[:, 0], 'other': theirs[pairs[:, 1]]})
        found = members.merge(of_look, on='look')[['image', 'other']].to_numpy()
    rows: list[list[int]] = found.tolist()
    return rows


def _looks(images: Other) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number of each image's look (its eight hashes), [N], and the first image of each look."""
    _, first, look = np.unique(np.asarray(images.hashes), axis=0, return_index=True, return_inverse=True)
    return look.ravel().astype(np.int64), first.astype(np.int64)


def _same_bytes(mine: Other, other: Other | None) -> pd.DataFrame:
    one = pd.DataFrame({'image': range(len(mine.ids)), 'digest': mine.digests}).dropna()
    if other is None:  # each copy with the first of its group
        first = one.groupby('digest')['image'].transform('first')
        pairs = pd.DataFrame({'image': first, 'other': one['image']})[first < one['image']]
    else:
        two = pd.DataFrame({'other': range(len(other.ids)), 'digest': other.digests}).dropna()
        two = two.drop_duplicates('digest')  # one of a picture's copies there is enough
        pairs = one.merge(two, on='digest')[['image', 'other']]
    return pairs.assign(how='bytes', correlation=1.0)


def _near_vectors(
    mine: Other, other: Other | None, model: Model, closer_than: float
) -> list[tuple[int, int, str, float]]:
    one = np.asarray(mine.vectors(model), dtype=np.float32)
    two = one if other is None else np.asarray(other.vectors(model), dtype=np.float32)
    scores, rows = nearest(one, two, min(_NEIGHBOURS, len(two)))
    found = []
    for row, place in zip(*np.nonzero(scores >= closer_than), strict=True):
        there = int(rows[row, place])
        if other is not None or row < there:
            found.append((int(row), there, 'embedding', float(scores[row, place])))
    return found


def _later_copies(pairs: pd.DataFrame, count: int) -> npt.NDArray[np.int64]:
    """Images that are copies of an earlier one, directly or through others."""
    one, two = (pairs[c].to_numpy(np.int64) for c in ('image', 'other'))
    graph = coo_matrix((np.ones(len(one), dtype=bool), (one, two)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return np.flatnonzero(first[group] != np.arange(count))


def _page(
    captions: CaptionSet, table: pd.DataFrame, mine: Other, others: Sequence[Other], inside: npt.NDArray[np.int64]
) -> str:
    """The pairs side by side."""
    summary = [('images of the set', f'{len(captions):,}'), ('copies inside the set', f'{len(inside):,}')]
    groups = []
    for name, theirs in [('', mine), *((o.name, o) for o in others)]:
        pairs = table[table['against'] == name]
        if name:
            summary.append((f'also in {name} ({len(theirs.ids):,} images)', f'{pairs["image"].nunique():,}'))
        cells: list[dict[str, Any]] = []
        for row in pairs.sort_values('correlation').head(_SHOWN).itertuples():
            score = f'{row.how} {row.correlation:.3f}'
            for part, at, text in ((mine, row.image, row.image_id), (theirs, row.other, row.other_id)):
                cells.append(
                    {'picture': thumbnail(partial(part.read, int(at))), 'score': score, 'text': str(text)[-80:]}
                )
        groups.append((f'Also in {name}' if name else 'Inside the set', cells))
    made = ' '.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))
    return selection_page(f'Copies in {captions.path.name}', made, summary, [g for g in groups if g[1]])
