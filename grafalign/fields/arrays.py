"""The arrays of a field on disk: zarr version 3, one file a chunk, so that any zarr library reads them.

    field.json                 the marker, written last
    zarr.json                  a zarr group
    embeddings/c/R/C/0         [64, 64, D] float16, or int8 with `scale`: the mean embedding of each cell, 0 if missing
    scale/c/R/0                [64, columns] float32, with int8 only: embedding = number * scale
    norm/c/R/0                 [64, columns] float32: length of the mean; 1 where all windows agree, 0 if missing
    source/c/R/0               [64 * cell, width] uint8, gzip: which scene each *pixel* is from, from 1; 0 if missing
    preview/c/R/0/0            [64, columns, 3] uint8: mean colour of each cell, a picture of the scene
    bands/R.json               what became of a band, written last: the band is complete

R counts bands of 64 rows of cells, C columns of 64. Chunks are whole: what lies beyond the edge is 0. Without any
library:

    import gzip, json, numpy as np
    plan = json.load(open('field.json'))['plan']
    chunk = np.fromfile('embeddings/c/0/0/0', np.float16).reshape(64, 64, plan['dimensions'])
    pixels = np.frombuffer(gzip.decompress(open('source/c/0/0', 'rb').read()), np.uint8)
    pixels = pixels.reshape(64 * plan['cell'], plan['width'])
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from grafalign.errors import DamagedError
from grafalign.fields.marker import FieldPlan, Numbers
from grafalign.files import write_atomically
from grafalign.foreign.files import open_plain

CHUNK = 64
"""Rows and columns of cells in a chunk."""
_MOST_STATS = 16 << 20
Floats = npt.NDArray[np.float32]


def shape_of(plan: FieldPlan) -> tuple[int, int]:
    """Rows and columns of cells."""
    return -(-plan.height // plan.cell), -(-plan.width // plan.cell)


def bands_of(plan: FieldPlan) -> int:
    """Bands of chunks from top to bottom."""
    return -(-shape_of(plan)[0] // CHUNK)


def is_complete(folder: Path, band: int) -> bool:
    """Whether all chunks of a band are there."""
    return stats_file(folder, band).is_file()


def write_layout(folder: Path, plan: FieldPlan) -> None:
    """Write the `zarr.json` files."""
    rows, columns = shape_of(plan)
    _write_json(folder / 'zarr.json', {'zarr_format': 3, 'node_type': 'group', 'attributes': {}})
    embeddings = (rows, columns, plan.dimensions), (CHUNK, CHUNK, plan.dimensions)
    _write_array(folder / 'embeddings', *embeddings, plan.numbers)
    _write_array(folder / 'norm', (rows, columns), (CHUNK, columns), 'float32')
    if plan.numbers == 'int8':
        _write_array(folder / 'scale', (rows, columns), (CHUNK, columns), 'float32')
    _write_array(folder / 'preview', (rows, columns, 3), (CHUNK, columns, 3), 'uint8')
    _write_array(folder / 'source', (plan.height, plan.width), (CHUNK * plan.cell, plan.width), 'uint8', True)


class BandStats(BaseModel):
    """`bands/R.json`: what became of a band."""

    error: float
    """Largest length of the rounding error of an embedding: no score is off by more."""
    windows: int
    """Encoded windows that begin in it."""
    missing: int
    """Pixels."""
    saturated: int
    """Pixels of which every band lies at or beyond an end of the value range."""
    failed: dict[str, int]
    """Why pieces of scenes could not be read, and how many."""


def read_stats(folder: Path, band: int) -> BandStats:
    """What became of a band.

    Raises:
        DamagedError: its file cannot be read.
    """
    path = stats_file(folder, band)
    try:
        with open_plain(path, _MOST_STATS) as file:
            return BandStats.model_validate_json(file.read())
    except (OSError, ValueError) as error:
        raise DamagedError(f'{path} is damaged ({" ".join(str(error).split())[:120]}); {_AGAIN}.') from None


@dataclass(frozen=True)
class Cells:
    """Some rows of cells as they are stored: so a band of a wide scene takes a half or a quarter of the memory."""

    stored: npt.NDArray[Any]
    """Mean embeddings, float16 or int8, [rows, columns, D]."""
    scale: Floats
    """What an int8 is worth, [rows, columns]."""
    norm: Floats
    """Length of the mean, [rows, columns]."""
    error: Floats
    """Largest error of a score that rounding made, [rows]."""

    @classmethod
    def of(cls, mean: Floats, numbers: Numbers) -> Cells:
        """From mean embeddings [rows, columns, D]."""
        parts = [_rounded(row[None], numbers) for row in mean]  # row by row: what is restored takes 4 bytes a number
        errors = [np.linalg.norm(part[2] - row, axis=-1).max() for part, row in zip(parts, mean, strict=True)]
        stored, scale = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        return cls(stored, scale, np.linalg.norm(mean, axis=-1).astype('<f4'), np.asarray(errors, np.float32))

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice) -> Cells:
        return Cells(*(np.array(v[rows]) for v in (self.stored, self.scale, self.norm, self.error)))


@dataclass(frozen=True)
class Band:
    """The rows of a band."""

    cells: Sequence[Cells]
    """Its cells, some rows each."""
    preview: npt.NDArray[np.uint8]
    """Their colours, [rows, columns, 3]."""
    source: npt.NDArray[np.uint8]
    """Scenes of its pixels, [pixel rows, width]."""
    saturated: int
    """How many of them are black or white in every band."""


def write_band(folder: Path, plan: FieldPlan, number: int, band: Band, windows: int, failed: Mapping[str, int]) -> None:
    """Write a band of chunks.

    Args:
        folder: the field's.
        plan: what it holds.
        number: of the band.
        band: its rows.
        windows: encoded windows that begin in it.
        failed: why pieces of scenes could not be read, and how many.
    """
    columns = shape_of(plan)[1]
    for column in range(-(-columns // CHUNK)):  # a band of a wide scene is not in memory twice
        inside = slice(column * CHUNK, (column + 1) * CHUNK)
        stored = np.concatenate([rows.stored[:, inside] for rows in band.cells])
        chunk = np.zeros((CHUNK, CHUNK, plan.dimensions), stored.dtype)
        chunk[: stored.shape[0], : stored.shape[1]] = stored
        path = folder / 'embeddings' / 'c' / str(number) / str(column) / '0'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, chunk.tobytes())
    _write_rows(folder, 'norm', number, np.concatenate([rows.norm for rows in band.cells]))
    if plan.numbers == 'int8':
        _write_rows(folder, 'scale', number, np.concatenate([rows.scale for rows in band.cells]))
    _write_rows(folder, 'preview', number, band.preview)
    _write_rows(folder, 'source', number, band.source, plan.cell * CHUNK)
    stats = BandStats(
        error=max(float(rows.error.max()) for rows in band.cells),
        windows=windows,
        missing=int((band.source == 0).sum()),
        saturated=band.saturated,
        failed=dict(sorted(failed.items())),
    )
    path = stats_file(folder, number)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (stats.model_dump_json() + '\n').encode())


def _rounded(mean: Floats, numbers: Numbers) -> tuple[npt.NDArray[Any], Floats, Floats]:
    """Embeddings as they are stored, the scale of each, and what they are when they are read."""
    if numbers == 'float16':
        half = mean.astype('<f2')
        return half, np.ones(mean.shape[:2], '<f4'), half.astype(np.float32)
    scale = (np.abs(mean).max(axis=-1) / 127).astype('<f4')
    whole = np.rint(mean / np.where(scale > 0, scale, 1)[..., None]).astype('i1')
    return whole, scale, whole * scale[..., None]


def read_embeddings(folder: Path, plan: FieldPlan, rows: slice, columns: slice) -> Floats:
    """Mean embeddings of some cells, [rows, columns, D].

    Raises:
        DamagedError: a chunk is missing or cut short.
    """
    out = np.empty((rows.stop - rows.start, columns.stop - columns.start, plan.dimensions), np.float32)
    shape = (CHUNK, CHUNK, plan.dimensions)
    for band, inner_rows, outer_rows in _overlaps(rows):
        for column, inner, outer in _overlaps(columns):
            path = folder / 'embeddings' / 'c' / str(band) / str(column) / '0'
            out[outer_rows, outer] = _read(path, plan.numbers, shape)[inner_rows, inner]
    if plan.numbers == 'int8':
        out *= _read_rows(folder, plan, 'scale', rows, columns)[..., None]
    return out


def read_norm(folder: Path, plan: FieldPlan, rows: slice, columns: slice) -> Floats:
    """Length of the mean embedding of some cells."""
    return _read_rows(folder, plan, 'norm', rows, columns)


def read_preview(folder: Path, plan: FieldPlan) -> npt.NDArray[np.uint8]:
    """The picture of the scene, [rows, columns, 3]."""
    rows, columns = shape_of(plan)
    parts = [_read(_file(folder, 'preview', b), 'uint8', (CHUNK, columns, 3)) for b in range(bands_of(plan))]
    return np.concatenate(parts)[:rows]


def read_source(folder: Path, plan: FieldPlan, rows: slice) -> npt.NDArray[np.uint8]:
    """Scenes of some rows of *pixels*, [rows, width]."""
    high = CHUNK * plan.cell
    parts = []
    for band in range(rows.start // high, -(-rows.stop // high)):
        path = _file(folder, 'source', band)
        try:
            with open_plain(path) as plain, gzip.open(plain) as file:
                content = file.read(high * plan.width + 1)  # no more, whatever it unfolds to
            pixels = np.frombuffer(content, np.uint8).reshape(high, plan.width)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise DamagedError(f'{path} is damaged ({error}); {_AGAIN}.') from None
        parts.append(pixels[max(0, rows.start - band * high) : rows.stop - band * high])
    return np.concatenate(parts)


_AGAIN = 'delete the folder of the field and run `grafalign field` again'


def _read_rows(folder: Path, plan: FieldPlan, name: str, rows: slice, columns: slice) -> Floats:
    wide = shape_of(plan)[1]
    parts = [_read(_file(folder, name, band), 'float32', (CHUNK, wide))[inner] for band, inner, _ in _overlaps(rows)]
    return np.concatenate(parts)[:, columns]


def _overlaps(span: slice) -> list[tuple[int, slice, slice]]:
    """Chunks that a span of cells touches: number, the part inside the chunk, and where it goes.

    Example:
        >>> _overlaps(slice(60, 70))
        [(0, slice(60, 64, None), slice(0, 4, None)), (1, slice(0, 6, None), slice(4, 10, None))]
    """
    parts = []
    for number in range(span.start // CHUNK, -(-span.stop // CHUNK)):
        begin, end = max(span.start, number * CHUNK), min(span.stop, (number + 1) * CHUNK)
        inner = slice(begin - number * CHUNK, end - number * CHUNK)
        parts.append((number, inner, slice(begin - span.start, end - span.start)))
    return parts


def stats_file(folder: Path, band: int) -> Path:
    """File of a band that is written last, with what was counted in it."""
    return folder / 'bands' / f'{band}.json'


def _file(folder: Path, name: str, band: int) -> Path:
    """The one chunk of a band."""
    last = ('0', '0') if name == 'preview' else ('0',)
    return folder.joinpath(name, 'c', str(band), *last)


def _read(path: Path, numbers: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        size = math.prod(shape) * np.dtype(numbers).itemsize
        with open_plain(path, size) as file:
            content = file.read()
        if len(content) != size:
            raise ValueError(f'it has {len(content):,} bytes')
    except (OSError, ValueError) as error:
        raise DamagedError(f'{path} is damaged ({error}); {_AGAIN}.') from None
    return np.frombuffer(content, np.dtype(numbers).newbyteorder('<')).reshape(shape)


def _write_rows(folder: Path, name: str, band: int, rows: npt.NDArray[Any], high: int = CHUNK) -> None:
    chunk = np.zeros((high, *rows.shape[1:]), rows.dtype)
    chunk[: len(rows)] = rows
    path = _file(folder, name, band)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = chunk.tobytes()
    write_atomically(path, gzip.compress(content, 6, mtime=0) if name == 'source' else content)


def _write_array(
    folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...], numbers: str, zip_: bool = False
) -> None:
    little = (
        {'name': 'bytes', 'configuration': {'endian': 'little'}}
        if np.dtype(numbers).itemsize > 1
        else {'name': 'bytes'}
    )
    content = {
        'zarr_format': 3,
        'node_type': 'array',
        'shape': list(shape),
        'data_type': numbers,
        'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': list(chunk)}},
        'chunk_key_encoding': {'name': 'default', 'configuration': {'separator': '/'}},
        'fill_value': 0,
        'codecs': [little, *([{'name': 'gzip', 'configuration': {'level': 6}}] if zip_ else [])],
        'attributes': {},
    }
    _write_json(folder / 'zarr.json', content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2) + '\n').encode())
