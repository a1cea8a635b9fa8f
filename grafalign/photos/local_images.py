"""What the local images of a source tell: whether they decode, where and when they were taken, size and hashes."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from grafalign import console, engine
from grafalign.photos.exif import PhotoMetadata, read_metadata
from grafalign.photos.table import SCHEMA
from grafalign.photos.values import Column

_CHUNK = 64
_TOLD = ('width', 'height', 'digest', 'dhash')
"""Of these the files know better than any table."""


def with_metadata(
    table: pa.Table, rows: npt.NDArray[np.int64], ours: Set[str], verify: bool, workers: int | None
) -> Column:
    """A table with the columns that its images tell filled in, and `problem` where one cannot be used.

    Args:
        table: Arrow table of `SCHEMA`, `problem` and `detail`.
        rows: rows whose `uri` is a path on this machine.
        ours: which of lon, lat, accuracy_m, heading_deg, field_of_view_deg and taken_at come from the images.
        verify: decode all pixels.
        workers: threads.
    """
    uris = table['uri']
    names = [*sorted(ours), *_TOLD, 'problem']
    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    columns: dict[str, list[Any]] = {name: [None] * len(chunks) for name in names}

    def read(part: npt.NDArray[np.int64]) -> dict[str, Any]:
        metadata = [_metadata(path, verify) for path in uris.take(pa.array(part)).to_pylist()]
        if 'lon' in ours:
            metadata = [replace(f, problem=f.problem or f.place_problem) for f in metadata]
        return {n: pa.array([getattr(f, n, None) for f in metadata], _kind(n)) for n in names}

    work = engine.run(read, chunks, workers)
    for index, found in console.track(work, 'reading photos', len(rows), step=_CHUNK):
        for name in names:
            columns[name][index] = found[name]
    where = np.zeros(len(table), dtype=bool)
    where[rows] = True
    for name in names:
        values = pa.chunked_array(columns[name]).combine_chunks()
        if values.null_count == len(values) and name not in ours:
            continue
        column = table[name].combine_chunks()
        if name not in ours:  # what the file does not tell stays as the table has it
            values = pc.coalesce(values, column.filter(pa.array(where)))
        filled = pc.replace_with_mask(column, pa.array(where), values)
        if pa.types.is_floating(filled.type):
            filled = pc.fill_null(filled, np.nan)
        table = table.set_column(table.schema.get_field_index(name), name, filled)
    return table


def _kind(name: str) -> Any:
    return pa.string() if name == 'problem' else SCHEMA.field(name).type


def _metadata(path: str, verify: bool) -> PhotoMetadata:
    try:
        return read_metadata(Path(path), verify)
    except ValueError:  # a path that no file can have
        return PhotoMetadata(problem='file is missing')
