"""The parts of a photo bank while it is made: which photos each has, and the file that it leaves.

    PARTS/00000.parquet    a row a photo: `row` of the store, `embedding` (float16, D), and what `metadata_table` says

There are about a thousand parts, however many photos: a killed run loses at most the parts it was at, and one that goes
on has few files to look for. Photos of an archive are in one part, so that it is read once, front to back.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign.encoders.reading import CHUNK, Chunk, Rows
from grafalign.errors import DamagedError
from grafalign.files import replacing, vectors_column

_PARTS = 1024
"""About so many there are."""
_LARGEST = 512 * CHUNK
"""Photos in a part, unless an archive has more."""


def plan_parts(uris: Sequence[str], todo: Rows) -> list[Rows]:
    """Cut photos into parts, archive by archive, and those without one first.

    Args:
        uris: of all photos.
        todo: rows of those to embed.

    Example:
        >>> uris = ['tar://a::1.tar', 'b.jpg', 'tar://c::0.tar', 'tar://d::1.tar']
        >>> [part.tolist() for part in plan_parts(uris, np.arange(4))]
        [[1, 2, 0, 3]]
    """
    size = CHUNK * int(np.clip(-(-len(todo) // (_PARTS * CHUNK)), 1, _LARGEST // CHUNK))
    archive = np.array([_archive(uris[row]) for row in todo], dtype=object)
    number, _ = pd.factorize(archive, sort=True)
    order = np.argsort(number, kind='stable')
    rows, number, plain = todo[order], number[order], archive[order] == ''
    ends = np.append(np.flatnonzero((number[1:] != number[:-1]) | plain[1:]) + 1, len(rows))
    parts, first = [], 0
    while first < len(rows):
        last = int(ends[np.searchsorted(ends, min(first + size, len(rows)))])
        parts.append(rows[first:last])
        first = last
    return parts


def _archive(uri: str) -> str:
    """The archive of a photo, '' where it is in none."""
    return uri.partition('::')[2] if uri.startswith('tar://') else ''


class OpenPart:
    """A part of which some photos are embedded."""

    def __init__(self, rows: Rows, width: int) -> None:
        self._rows, self._order = rows, np.argsort(rows)
        self._embeddings = np.zeros((len(rows), width), dtype=np.float16)
        self._metadata: list[pd.DataFrame] = []
        self._places: list[Rows] = []
        self._there = np.zeros(len(rows), dtype=bool)

    def add(self, chunk: Chunk, embeddings: npt.NDArray[np.float16]) -> bool:
        """Take the photos of a chunk; whether all are there now."""
        places = self._order[np.searchsorted(self._rows[self._order], chunk.rows)]
        self._embeddings[places] = embeddings
        self._metadata.append(chunk.metadata)
        self._places.append(places)
        self._there[places] = True
        return bool(self._there.all())

    def write(self, path: Path) -> None:
        """Leave the part as a file."""
        places = np.concatenate(self._places)
        metadata = pd.concat(self._metadata, ignore_index=True)
        last = pd.Series(np.arange(len(places)), index=places).groupby(level=0).last()  # of a photo that came twice
        table = pa.Table.from_pandas(metadata.iloc[last.to_numpy()], preserve_index=False)
        vectors = vectors_column(self._embeddings)
        table = table.add_column(0, 'row', pa.array(self._rows)).append_column('embedding', vectors)
        with replacing(path, sync=False) as part:
            pq.write_table(table, part)


def part_file(folder: Path, number: int) -> Path:
    """Where a part is."""
    return folder / f'{number:05d}.parquet'


def finished_parts(folder: Path) -> set[int]:
    """Numbers of the parts that are there."""
    with os.scandir(folder) as entries:
        return {int(e.name[:5]) for e in entries if e.name.endswith('.parquet') and e.name[:5].isdigit()}


def read_part(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of a part.

    Raises:
        GrafalignError: a disk has spoilt it; a killed run leaves none, as parts move in whole.
    """
    try:
        return pq.read_table(path, columns=list(columns))
    except (OSError, ValueError, KeyError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = ' '.join(str(error).split())[:160]
        raise DamagedError(
            f'{path} is damaged ({reason}); delete it and run the same command again: its photos are embedded anew.'
        ) from None
