"""Make a caption set of what people have: shards, tables, published caption files, tiles of a pair store.

The source streams; images are looked at (digest and size, not decoded) a few thousand at a time by some threads, and
rows are written in the order of the source, so that the set does not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign import console, engine
from grafalign.captions.caption_set import MARKER, SPLITS, CaptionSet, CaptionSetMarker, check_folder
from grafalign.captions.items import Item
from grafalign.captions.numbering import Numbering
from grafalign.captions.sources.shards import read_shards
from grafalign.captions.sources.tables import read_caption_file, read_table
from grafalign.captions.sources.tiles import read_tiles
from grafalign.captions.usable_text import TextError, cleaned, decoded
from grafalign.captions.write_set import SetWriter, writable
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import remove_parts
from grafalign.foreign.files import ForeignFileError, open_plain
from grafalign.locks import exclusive
from grafalign.photos.exif import MAX_FILE_BYTES, read_metadata
from grafalign.photos.opening import kind_of
from grafalign.photos.ranks import keyed_hashes
from grafalign.photos.uris import SCHEMES, is_local, resolve_uris
from grafalign.store import PairStore

Form = Literal['auto', 'shards', 'table', 'captions', 'tiles']
_CHUNK = 2048
_DEFAULT_KIND = {'shards': 'alt', 'table': 'alt', 'captions': 'human', 'tiles': 'template'}


@dataclass(frozen=True)
class ImportOptions:
    """How a source is read."""

    form: Form = 'auto'
    """shards (WebDataset, img2dataset), table (Parquet, JSON lines, CSV), captions (a published JSON), tiles (of a pair
    store)."""
    images: Path | None = None
    """Folder that the files of a table lie below; that of the table by default."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of columns to the source's."""
    kind: str | None = None
    """alt, template, model or human: who wrote the captions."""
    licence: str | None = None
    """Of images whose source names none."""
    split: str = 'train'
    """Of images whose source names none."""
    val: float = 0.0
    """Share of the images without a split that go to `val`, by a keyed hash of their id."""
    uncaptioned: bool = False
    """Keep images without a caption, to write some for them; those of a pair store always are."""
    min_px: int = 16
    """Images with a shorter side are refused."""


def import_captions(
    source: Path, out: Path, options: ImportOptions | None = None, workers: int | None = None
) -> CaptionSetMarker:
    """Read a source into a caption set; one that is complete and of the same settings is left as it is.

    Args:
        source: folder or file.
        out: the set's folder.
        options: how the source is read.
        workers: threads that look at images.

    Raises:
        GrafalignError: the source cannot be read, holds no image with a caption, or `out` holds something else.
    """
    options = options or ImportOptions()
    if not source.exists():
        raise InputError(f'There is no {source}; give shards, a table, a caption file or a pair store.')
    form = options.form if options.form != 'auto' else _form_of(source)
    check_folder(out, source)
    settings = _settings(source, form, options)
    with naming_full_disk(out), exclusive(out):
        remove_parts(out)
        if (out / MARKER).is_file():
            done = CaptionSet(out)
            if done.marker.settings == settings and not done.problems() and not _images_changed(done):
                console.log(f'{out} is already complete.')
                return done.marker
        with SetWriter(out) as writer:
            root = _read(source, form, options, writer, workers)
            if not len(writer):
                reasons = ', '.join(f'{reason} ({count:,})' for reason, count in writer.reasons.most_common(3))
                raise InputError(f'{source} has no image that can be used: {reasons or "it is empty"}.')
            store = (str(source.resolve()), PairStore(source).digest) if form == 'tiles' else None
            return writer.finish(settings, None if form == 'tiles' else str(root), store)


def _settings(source: Path, form: str, options: ImportOptions) -> dict[str, Any]:
    images = None if options.images is None else str(options.images.resolve())
    return {
        'source': str(source.resolve()),
        'form': form,
        'images': images,
        'columns': dict(sorted(options.columns.items())),
        'kind': options.kind or _DEFAULT_KIND[form],
        'licence': writable(options.licence),
        'split': options.split,
        'val': options.val,
        'uncaptioned': options.uncaptioned,
        'min_px': options.min_px,
        'state': _state(source),
    }


def _state(source: Path) -> str:
    """Digest of the names, sizes and times of the source's own files, so that a changed source is read again."""
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    state = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        state.update(f'{file.name} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return state.hexdigest()


def _images_changed(done: CaptionSet) -> bool:
    """Whether an image file is another one than when it was looked at, or is there now and was not."""
    root = done.marker.root
    if root is None:
        return False
    read_at = (done.path / MARKER).stat().st_mtime_ns
    offsets = done.images['byte_offset'].is_null().to_pylist()
    names, sizes = done.images['file'].to_pylist(), done.images['nbytes'].to_pylist()
    for name, size, whole in zip(names, sizes, offsets, strict=True):
        if not whole or '://' in name:
            continue
        try:
            status = (Path(root) / name).stat()
        except OSError:
            return True
        if status.st_size != size or status.st_mtime_ns > read_at:
            return True
    missing = done.rejected.filter(pc.equal(done.rejected['reason'].cast(pa.string()), 'file is missing'))
    return any((Path(root) / name).is_file() for name in missing['id'].to_pylist() if '\0' not in name)


def _form_of(source: Path) -> str:
    if source.is_file():
        kind = 'shards' if source.suffix == '.tar' else kind_of(str(source))[0]
        if kind in ('parquet', 'jsonl', 'csv', 'tsv'):
            return 'table'
        if kind in ('shards', 'json'):
            return 'captions' if kind == 'json' else 'shards'
        raise InputError(f'{source} is of no known form; give .tar, .parquet, .jsonl, .csv, .tsv or .json.')
    if (source / 'dataset.json').is_file() and (source / 'tiles.parquet').is_file():
        return 'tiles'
    if any(p.suffix == '.tar' for p in source.iterdir()):
        return 'shards'
    raise InputError(
        f'{source} holds neither .tar shards nor a pair store; give the table or caption file itself, and --images for '
        'the folder of its images.'
    )


def _read(source: Path, form: str, options: ImportOptions, writer: SetWriter, workers: int | None) -> Path:
    """Write the rows of a source; return the folder that its files lie below."""
    if form == 'tiles':
        root, items = source, read_tiles(PairStore(source))
    elif form == 'shards':
        root, items = source if source.is_dir() else source.parent, read_shards(source, options.columns)
    else:
        root = options.images or source.parent
        if not root.is_dir():
            raise InputError(f'There is no folder {root}; --images names the folder that the files lie below.')
        items = (
            read_table(source, options.columns, options.uncaptioned)
            if form == 'table'
            else read_caption_file(source, root)
        )
    root = root.resolve()
    rows = _Rows(writer, options, options.kind or _DEFAULT_KIND[form], form == 'tiles' or options.uncaptioned)
    with (
        ThreadPoolExecutor(workers or engine.default_workers(), thread_name_prefix='images') as pool,
        console.progress('reading images') as bar,
    ):
        for chunk in _chunks(items):
            before = writer.reasons.total()
            for item, look in zip(
                chunk, pool.map(lambda i: _look(i, root, options), _resolved(chunk, root)), strict=True
            ):
                rows.add(item, look)
            bar.advance(len(chunk), rejected=writer.reasons.total() - before)
    return root


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(itertools.islice(items, _CHUNK)):
        yield chunk


def _resolved(items: list[Item], root: Path) -> list[tuple[Item, str | None, str | None]]:
    """Items with the path or address of their file, and what is wrong with it."""
    files = pa.array([None if i.file is None or i.reason else writable(i.file) for i in items], pa.string())
    paths, problems = resolve_uris(files, str(root), SCHEMES)
    local = is_local(paths)
    found = []
    for item, path, problem, here in zip(items, paths.to_pylist(), problems.to_pylist(), local.tolist(), strict=True):
        found.append((item, path if here else None, item.reason or problem))
    return found


@dataclass(frozen=True)
class _Look:
    """What an image is, by a look at its file."""

    reason: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def _look(resolved: tuple[Item, str | None, str | None], root: Path, options: ImportOptions) -> _Look:
    item, path, problem = resolved
    if problem is not None or path is None:
        return _Look(problem)
    try:
        with open_plain(path) as file:
            file.seek(item.byte_offset or 0)
            content = file.read(MAX_FILE_BYTES if item.nbytes is None else min(item.nbytes, MAX_FILE_BYTES))
    except FileNotFoundError:
        return _Look('file is missing')
    except (ForeignFileError, OSError) as error:
        return _Look(f'cannot be read ({getattr(error, "strerror", None) or error})'[:100])
    metadata = read_metadata(content, verify=False)
    if metadata.problem is not None:
        return _Look(metadata.problem)
    if min(metadata.width or 0, metadata.height or 0) < options.min_px:
        return _Look(f'smaller than {options.min_px} px')
    digest = hashlib.file_digest(io.BytesIO(content), lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    columns = {'digest': digest, 'nbytes': len(content), 'width': metadata.width, 'height': metadata.height}
    if item.byte_offset is None:
        columns['file'] = path.removeprefix(f'{root}/')
    return _Look(None, columns)


class _Rows:
    """Items become rows: equal ids are one image, its captions those of all of them."""

    def __init__(self, writer: SetWriter, options: ImportOptions, kind: str, bare: bool) -> None:
        self._writer, self._options, self._kind, self._bare = writer, options, kind, bare
        self._ids = Numbering()
        self._row, self._where = _Numbers(), _Numbers()

    def add(self, item: Item, look: _Look) -> None:
        """Write an item's rows, or the reason why there are none."""
        writer = self._writer
        count = len(self._ids)
        number = self._ids.number(item.image_id)
        if number < count and self._row[number] >= 0:
            if look.reason is not None or self._where[number] != _place(item):
                writer.reject('image', item.image_id, look.reason or 'another file has this id', item.file)
            else:
                self._captions(item, self._row[number], self._clean(item))
            return
        if number == count:
            self._row.append(-1)
            self._where.append(_place(item))
        if look.reason is not None:
            writer.reject('image', item.image_id, look.reason, item.metadata.get('detail'))
            return
        captions = self._clean(item)
        if not captions and not self._bare:
            reason = 'no usable caption' if item.texts else 'no caption'
            writer.reject('image', item.image_id, reason, item.metadata.get('detail'))
            return
        columns = dict.fromkeys(('url', 'label', 'author', 'lon', 'lat', 'gsd_m'))
        columns |= {'licence': self._options.licence, **item.metadata, **look.columns}
        columns.pop('detail', None)
        columns['split'] = self._split(item)
        if columns['split'] is None:
            writer.reject('image', item.image_id, 'unknown split', str(item.metadata['split']))
            return
        columns.setdefault('file', item.file)
        if item.packed is not None and item.packed.scores:
            columns['scores'] = list(item.packed.scores.items())
        for reason, value in item.dropped:
            writer.reject('value', item.image_id, reason, value)
        row = writer.add_image(image_id=item.image_id, byte_offset=item.byte_offset, **columns)
        self._row[number], self._where[number] = row, _place(item)
        self._captions(item, row, captions)

    def _split(self, item: Item) -> str | None:
        """The split of an image; None where it names one that is none."""
        split = str(item.metadata.get('split') or '').strip().lower()
        if split:
            split = _SPLITS.get(split, split)
            return split if split in SPLITS else None
        if self._options.val and keyed_hashes([item.image_id], 0)[0] < np.uint64(self._options.val * 2**64 - 1):
            return 'val'
        return self._options.split

    def _clean(self, item: Item) -> list[dict[str, Any]]:
        """Columns of the usable captions."""
        captions = []
        packed_columns = item.packed.captions if item.packed is not None else [None] * len(item.texts)
        for text, packed in zip(item.texts, packed_columns, strict=True):
            columns = {'kind': self._kind, 'evidence': []} if packed is None else packed.model_dump(mode='json')
            if self._options.kind is not None:
                columns['kind'] = self._options.kind
            try:
                text, checks = decoded(text) if isinstance(text, bytes) else (text, ())
                captions.append({**columns, 'text': cleaned(text), 'checks': [*columns.get('checks', ()), *checks]})
            except TextError as error:
                shown = text if isinstance(text, str) else text.decode('latin-1')
                self._writer.reject('caption', item.image_id, str(error), shown[:100])
        return captions

    def _captions(self, item: Item, row: int, captions: list[dict[str, Any]]) -> None:
        for columns in captions:
            self._writer.add_caption(image=row, image_id=item.image_id, **columns)


_SPLITS = {'training': 'train', 'validation': 'val', 'valid': 'val', 'dev': 'val', 'testing': 'test'}


def _place(item: Item) -> int:
    """A number that tells the file of an image, or its stretch of a tar, from others."""
    place = f'{item.file}\0{item.byte_offset}'.encode('utf-8', 'surrogatepass')
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), 'little', signed=True)


class _Numbers:
    """A growing array of whole numbers."""

    def __init__(self) -> None:
        self._values = np.empty(1024, dtype=np.int64)
        self._count = 0

    def append(self, value: int) -> None:
        if self._count == len(self._values):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._values[self._count] = value
        self._count += 1

    def __getitem__(self, at: int) -> int:
        return int(self._values[at])

    def __setitem__(self, at: int, value: int) -> None:
        self._values[at] = value
