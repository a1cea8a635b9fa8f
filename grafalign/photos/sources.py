"""Where photos come from: a folder of images with EXIF, tables, published layouts, or WebDataset shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import Field, model_validator

from grafalign.config import Settings
from grafalign.errors import InputError
from grafalign.foreign.images import HEIF_SUFFIXES, SUFFIXES, looks_like_image
from grafalign.photos.collect import Collected
from grafalign.photos.filters import PhotoFilters
from grafalign.photos.guess import GUESSES, read_plain
from grafalign.photos.layouts import LAYOUTS, Layout
from grafalign.photos.opening import files_of, is_url
from grafalign.photos.raw import Raw, Where
from grafalign.photos.spelled_times import TimeSettings
from grafalign.photos.table import Photos
from grafalign.photos.uris import KNOWN, SCHEMES
from grafalign.photos.web import RemoteSettings
from grafalign.photos.webdataset import read_webdataset

IMAGE_SUFFIXES = (*SUFFIXES, *HEIF_SUFFIXES)
_LISTED = 1 << 16


class PhotoSource(Settings):
    """The `photos:` part of a recipe; give `folder`, `table` or `webdataset`."""

    folder: Path | None = None
    """Folder of images (JPEG, PNG, WebP, TIFF, HEIC ...), searched with its subfolders; positions come from EXIF."""
    taken_at: TimeSettings = TimeSettings()
    """How the times of a table are spelled, where they do not tell it themselves."""
    table: str | Path | list[str | Path] | None = None
    """A path, glob, folder or URL, or a list of them: CSV, TSV, JSONL, Parquet, GeoParquet or GeoJSON, optionally
    compressed (.gz, .bz2, .zst); one photo a row."""
    webdataset: str | Path | None = None
    """Folder or URL of img2dataset's WebDataset output: 00000.tar with 00000.parquet, and so on."""
    layout: Layout | None = None
    """The published layout that `table` has; its columns need no names then."""
    columns: dict[str, str] = {}
    """Our column name to the table's, where they differ (photo_id, uri, lon, lat, taken_at ...)."""
    root: str | Path | None = None
    """Folder or URL that the table's uris are relative to; the table's own folder by default."""
    schemes: tuple[str, ...] = Field(default=SCHEMES, min_length=1)
    """What the table's uris may name; `file` stands for local paths."""
    verify: bool = True
    """Decode every local image once, so that damaged ones are rejected now."""
    filters: PhotoFilters = PhotoFilters()
    """Which of the photos are wanted."""
    remote: RemoteSettings = RemoteSettings()
    """How photos on URLs are fetched, when they are embedded."""

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        if sum(s is not None for s in (self.folder, self.table, self.webdataset)) != 1:
            raise ValueError('give exactly one of `folder`, `table` and `webdataset`')
        unknown = set(self.columns) - set(GUESSES)
        if unknown:
            raise ValueError(f'`columns` knows {", ".join(GUESSES)}, not {", ".join(sorted(unknown))}')
        if not set(self.schemes) <= set(KNOWN):
            raise ValueError(f'`schemes` knows {", ".join(KNOWN)}')
        if self.layout is not None and (self.table is None or self.columns):
            raise ValueError('`layout` tells the columns of a `table`: give it with `table` and without `columns`')
        return self

    @property
    def name(self) -> str:
        """What to call the source in a sentence."""
        given = self.folder or self.webdataset or self.table
        return ', '.join(map(str, given)) if isinstance(given, list) else str(given)


def read_photos(source: PhotoSource, workers: int | None = None) -> Photos:
    """Read, check and filter all photos of a source, in batches.

    Args:
        source: where they are and which are wanted.
        workers: threads that read local images; the number of cores by default.

    Raises:
        GrafalignError: the folder or table is missing or unreadable, a column is missing, or no photo is usable.
    """
    collected = Collected(source.name, source.filters, source.schemes, source.verify, source.taken_at)
    for raw in _raw(source):
        collected.add(raw)
    return collected.finish(workers)


def _raw(source: PhotoSource) -> Iterator[Raw]:
    if source.folder is not None:
        return _list_folder(source.folder)
    if source.webdataset is not None:
        return read_webdataset(str(source.webdataset), source.columns)
    if source.table is None:
        raise InputError('photos: there is no source; give folder, table or webdataset.')
    files = files_of(source.table)
    where = Where(_root(source.root, files[0]), given=source.root is not None)
    if source.layout is not None:
        return LAYOUTS[source.layout](files, where)
    return (raw for file in files for raw in read_plain(file, _own_root(where, file), source.columns))


def _own_root(where: Where, file: str) -> Where:
    return where if where.given else Where(_root(None, file), given=False)


def _root(root: str | Path | None, file: str) -> str:
    """Absolute folder, or URL of one, that uris are relative to."""
    if root is not None:
        return str(root) if is_url(str(root)) else str(Path(root).resolve())
    return file.rpartition('/')[0] if is_url(file) else str(Path(file).parent.resolve())


def _list_folder(folder: Path) -> Iterator[Raw]:
    """Every image below a folder, in the order of the paths: known by its name, or by its first bytes."""
    if not folder.is_dir():
        raise InputError(f'There is no folder {folder}; set photos.folder to a folder of images.')
    base = str(folder.resolve())
    names: list[str] = []
    for parent, folders, files in os.walk(base):
        folders.sort()
        for name in sorted(files):
            path = f'{parent}/{name}'
            if (name.lower().endswith(IMAGE_SUFFIXES) or looks_like_image(path)) and Path(path).is_file():
                names.append(path)
        if len(names) >= _LISTED:
            yield _listed(names, base, folder.name)
            names = []
    yield _listed(names, base, folder.name)


def _listed(paths: list[str], base: str, source: str) -> Raw:
    printable = [p.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace') for p in paths]
    columns = {
        'photo_id': pa.array([os.path.relpath(p, base).replace(os.sep, '/') for p in printable], pa.string()),
        'uri': pa.array(printable, pa.string()),
        'source': pa.array([source] * len(paths), pa.string()),
    }
    return Raw(columns, len(paths), None, places_in_files=True)
