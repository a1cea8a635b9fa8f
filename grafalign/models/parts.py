"""Embeddings of many pictures in parts, which a killed run keeps and several processes share.

FOLDER/00000.parquet    a row a picture: `row`, `reason` (missing where it could be read), `embedding` (float32, D)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign.errors import DamagedError, GrafalignError, InputError
from grafalign.files import replacing, vectors_column, vectors_of
from grafalign.models.embedding import BATCH
from grafalign.models.model import Vectors
from grafalign.processes import Team, neighbours

_PARTS, _LARGEST = 1024, 128 * BATCH
"""About so many parts there are, of at most so many pictures."""
Embed = Callable[[range, Callable[[int, str], None]], Iterator[tuple[list[int], Vectors]]]
"""Embeds some rows and is told whom to tell of those that cannot be read, as `embedding.embed_pictures` does."""


def embed_in_parts(folder: Path, count: int, width: int, embed: Embed, team: Team) -> list[Path]:
    """Embed pictures by all processes of a team; the parts that are there are not made again.

    Args:
        folder: of the parts; named after what is embedded, and by what.
        count: pictures.
        width: D.
        embed: embeds those of a range, in its order. Parts begin with a batch, so batches are the same for any team.
        team: the processes.

    Returns:
        The files of all parts, when all are there.

    Raises:
        GrafalignError: one of the processes could not embed its share; all raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = BATCH * int(np.clip(-(-count // (_PARTS * BATCH)), 1, _LARGEST // BATCH))
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
    files = [folder / f'{number:05d}.parquet' for number in range(len(parts))]
    there = {entry.name for entry in os.scandir(folder)}
    missing = [number for number in team.share(len(parts)) if files[number].name not in there]
    error: GrafalignError | None = None
    try:
        for first, last in neighbours(missing):
            _make(parts[first:last], files[first:last], width, embed)
    except GrafalignError as raised:
        error = raised  # the others are told, so that all end this work together
    reasons = team.exchange(None if error is None else str(error))
    if error is not None:
        raise error
    reason = next((r for r in reasons if r is not None), None)
    if reason is not None:
        raise InputError(reason)
    team.see(files)
    return files


def _make(parts: list[range], files: list[Path], width: int, embed: Embed) -> None:
    """Make neighbouring parts in one go, and leave each as soon as its last picture is embedded."""
    rejected: dict[int, str] = {}
    rows: list[int] = []
    vectors: list[Vectors] = []
    left = list(zip(parts, files, strict=True))

    def write_whole(done: int) -> None:
        """Write the parts that end before a row."""
        while left and left[0][0].stop <= done:
            part, file = left.pop(0)
            at = int(np.searchsorted(rows, part.stop))
            waiting = np.concatenate(vectors) if vectors else np.zeros((0, width), np.float32)
            _write(file, part, rows[:at], waiting[:at], rejected)
            del rows[:at]
            vectors[:] = [waiting[at:]] if at < len(waiting) else []

    for batch, embedded in embed(range(parts[0].start, parts[-1].stop), rejected.__setitem__):
        rows += batch
        vectors.append(embedded)
        write_whole(min((max(batch) // BATCH + 1) * BATCH, parts[-1].stop))
    write_whole(parts[-1].stop)


def _write(file: Path, part: range, rows: list[int], vectors: Vectors, rejected: dict[int, str]) -> None:
    whole = np.zeros((len(part), vectors.shape[1]), dtype=np.float32)
    whole[np.array(rows, dtype=np.int64) - part.start] = vectors
    table = {
        'row': pa.array(np.arange(part.start, part.stop)),
        'reason': pa.array([rejected.get(row) for row in part], pa.string()),
        'embedding': vectors_column(whole),
    }
    with replacing(file, sync=False) as path:
        pq.write_table(pa.table(table), path)


def read_part(path: Path) -> tuple[npt.NDArray[np.int64], Vectors, dict[int, str]]:
    """Rows and embeddings of the pictures of a part that could be read, and the reasons of the others.

    Raises:
        GrafalignError: a disk has spoilt it.
    """
    try:
        table = pq.read_table(path)
        rows = table['row'].to_numpy()
        reasons = pd.Series(table['reason'].to_pandas(), dtype='string')
        vectors = vectors_of(table, 'embedding')
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = ' '.join(str(error).split())[:160]
        raise DamagedError(f'{path} is damaged ({reason}); delete it and run the same command again.') from None
    fine = reasons.isna().to_numpy(dtype=bool)
    rejected = {int(row): str(reasons.iloc[at]) for at, row in enumerate(rows) if not fine[at]}
    return rows[fine], vectors[fine], rejected
